"""Runs what `fmnist.records` has for a target over seeds that are fixed in advance, and judges what they come to.

The clock of a seed adds up the reading of the prepared data, all that comes before the first epoch but
compilation, and the training passes. Nothing else is on it: no import, compilation, validation, test or logging.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from fmnist import data, markdown, records, training
from fmnist.data import Splits
from fmnist.device import Device
from fmnist.errors import FmnistError
from fmnist.machine import UNKNOWN
from fmnist.options import parse
from fmnist.records import Record
from fmnist.seeds import Progress
from fmnist.settings import Speedrun, Train
from fmnist.statistics import spread
from fmnist.training import Epoch, Plan, Trained

REPORTED = ("test_accuracy", "one_view_accuracy", "seconds", "compile_seconds", "joules", "money")
"""Figures of a seed whose mean and spread are told."""
BOARD = (
    *("target", "reached", "test accuracy: mean (95 % interval, n)", "seconds: mean (95 % interval; min-max)"),
    *("compilation, s", "energy, J", "money", "model", "device", "versions", "commit", "date", "command"),
)
"""The heads of `row`."""


@dataclass(frozen=True)
class Chosen:
    """A record, and the training that it is with the settings of a command."""

    record: Record
    settings: Train
    plan: Plan


@dataclass(frozen=True)
class Speed:
    """What the training of one seed took."""

    load_seconds: float
    prepare_seconds: float
    train_seconds: float
    """Of all passes over the training split."""
    compile_seconds: float
    joules: float | None
    """The mean power of the passes, over `seconds`."""
    price_per_hour: float | None

    @property
    def seconds(self) -> float:
        """What is on the clock."""
        return self.load_seconds + self.prepare_seconds + self.train_seconds

    @property
    def money(self) -> float | None:
        return None if self.price_per_hour is None else self.price_per_hour * self.seconds / 3600


class Tracking(Protocol):
    """What is told of each seed; `fmnist.tracking.speedrun` is one."""

    def nested_run(self, name: str, entry_point: str) -> AbstractContextManager[str]: ...
    def log_begin(self, plan: Plan, splits: Splits, device: Device) -> None: ...
    def log_epoch(self, epoch: Epoch) -> None: ...
    def log_end(
        self, trained: Trained, speed: Speed, plan: Plan, splits: Splits, device: Device
    ) -> dict[str, Any]: ...


def choose(settings: Speedrun, device: str, *, backend: str | None = None) -> Chosen:
    """What is recorded for a target and a kind of device; imports nothing heavy.

    Raises:
        FmnistError: If it is for another backend than one that was selected already.
    """
    record = records.find(settings.target, device)
    shared = {name: getattr(settings, name) for name in ("dataset", "data_dir", "device", "seed")}
    texts = {**record.texts, **{name: str(value) for name, value in shared.items()}}
    if settings.dataset != Speedrun.dataset:
        texts.pop("validation", None)  # a record's is for as many images as its dataset has
    own = parse(Train, texts)
    if own.backend != (backend or own.backend):
        raise FmnistError(
            f"device={settings.device}: a driver is there, but {backend} sees no GPU; type -P device={device}"
        )
    return Chosen(record, own, training.plan(own))


def load(own: Train) -> Splits:
    """The data of a record."""
    return data.load(own.dataset, data_dir=own.data_dir, validation=own.validation, seed=own.seed)


def run(
    chosen: Chosen,
    device: Device,
    settings: Speedrun,
    tracking: Tracking,
    progress: Callable[[str, int], Progress],
) -> list[dict[str, Any]]:
    """Trains and tests the seeds, one after the other; gives their results.

    Args:
        chosen: With its plan settled.
        device: Of this process.
        settings: Say which seeds.
        tracking: Is told of each.
        progress: Of a name and a number of epochs.
    """
    results = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        plan = dataclasses.replace(chosen.plan, seed=seed)
        name = f"speedrun {chosen.record.name} · seed {seed}"
        with tracking.nested_run(name, "train"), progress(name, plan.recipe.epochs) as shown:
            results.append(_train(plan, chosen.settings, device, settings.price_per_hour, tracking, shown))
    return results


def _train(
    plan: Plan, own: Train, device: Device, price_per_hour: float | None, tracking: Tracking, progress: Progress
) -> dict[str, Any]:
    began = perf_counter()
    splits = load(own)
    load_seconds = perf_counter() - began
    tracking.log_begin(plan, splits, device)
    clock = training.Clock(device.kind)

    def on_epoch(epoch: Epoch) -> None:
        tracking.log_epoch(epoch)
        progress.step(str(epoch))

    trained = training.train(plan, splits, on_epoch, clock=clock)
    train_seconds = sum(epoch.seconds for epoch in trained.history)
    seconds = load_seconds + clock.prepare_seconds + train_seconds
    speed = Speed(
        load_seconds=load_seconds,
        prepare_seconds=clock.prepare_seconds,
        train_seconds=train_seconds,
        compile_seconds=clock.compile_seconds,
        joules=None if clock.joules is None else clock.joules / train_seconds * seconds,
        price_per_hour=price_per_hour,
    )
    return tracking.log_end(trained, speed, plan, splits, device)


def outcome(record: Record, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the seeds of a record come to: the verdict, and the spread of each figure that all of them have."""
    spreads = {}
    for name in REPORTED:
        values = [result[name] for result in results]
        if None not in values:
            spreads[name] = spread(values)
    accuracy, seconds = spreads["test_accuracy"], spreads["seconds"]
    reached = None if record.goal is None else accuracy.mean >= record.goal
    word = {None: "most accurate recipe", True: "reached", False: "missed"}[reached]
    figures = {name: dataclasses.asdict(each) for name, each in spreads.items()}
    between = f" ({seconds.min:.3g}-{seconds.max:.3g})" if len(results) > 1 else ""
    return {
        "verdict": f"**{word}**: mean {_accuracy(figures['test_accuracy'])} in {seconds.mean:.3g} s{between}",
        "target": record.target,
        "reached": reached,
        "repeats": len(results),
        "seeds": [result["seed"] for result in results],
        "joules": UNKNOWN,
        **{name: {key: value for key, value in each.items() if key != "n"} for name, each in figures.items()},
    }


def row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The line of a board, under `BOARD`, for a whole result: that of `outcome`, and where and how it was made."""
    seconds, other = result["seconds"], result["dataset"]
    target = result["target"] if result["goal"] is None else f"{result['target']} %"
    between = "" if seconds["std"] is None else f"{seconds['ci95_low']:.3g}-{seconds['ci95_high']:.3g}; "
    return (
        target if other == "fashion-mnist" else f"{target} of {other}",
        {None: "–", True: "yes", False: "no"}[result["reached"]],
        _accuracy(result["test_accuracy"] | {"n": result["repeats"]}),
        f"{seconds['mean']:.3g} ({between}{seconds['min']:.3g}-{seconds['max']:.3g})",
        f"{result['compile_seconds']['mean']:.3g}",
        UNKNOWN if result["joules"] == UNKNOWN else f"{result['joules']['mean']:.3g}",
        f"{result['money']['mean']:.3g}" if result.get("money") else "–",
        f"{result['model']}, {result['recipe']}",
        result["device"],
        ", ".join(f"{name} {number}" for name, number in result["versions"].items()),
        result["commit"],
        result["date"],
        result["command"],
    )


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each seed, in Markdown."""
    heads = ("seed", "test accuracy", "without views", "seconds", "read", "prepare", "train", "compile", "joules")
    names = ("seconds", "load_seconds", "prepare_seconds", "train_seconds", "compile_seconds", "joules")
    rows = [
        (
            str(result["seed"]),
            f"{result['test_accuracy']:.2%}",
            markdown.number(result["one_view_accuracy"], ".2%", none="–"),
            *(markdown.number(result[name], ".3g") for name in names),
        )
        for result in results
    ]
    return markdown.table(heads, rows)


def _accuracy(figures: Mapping[str, Any]) -> str:
    known = figures["std"] is not None
    between = f"{figures['ci95_low']:.2%}-{figures['ci95_high']:.2%}, " if known else ""
    return f"{figures['mean']:.2%} ({between}n={figures['n']})"
