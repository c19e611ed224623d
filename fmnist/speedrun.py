"""Runs what `fmnist.records` has for a target over seeds that are fixed in advance, and judges what they come to.

The clock of a seed adds up the reading of the prepared data, all that comes before the first epoch but
compilation, and the training passes. Nothing else is on it: no import, compilation, validation, test or logging.
Seeds that are trained at once have one clock: each takes as long as all.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from fmnist import data, markdown, records, together, training
from fmnist.data import Splits
from fmnist.device import Device
from fmnist.errors import FmnistError
from fmnist.machine import UNKNOWN
from fmnist.markdown import three_digits
from fmnist.options import AUTO, parse
from fmnist.records import Record
from fmnist.seeds import Progress
from fmnist.settings import Speedrun, Train
from fmnist.statistics import spread
from fmnist.training import Epoch, Fitted, Plan, Trained

CLOCKED = ("seconds", "compile_seconds", "joules", "money")
"""Figures that seeds which are trained at once have in common."""
REPORTED = ("test_accuracy", "one_view_accuracy", *CLOCKED)
"""Figures whose mean and spread are told: over the seeds, or for `CLOCKED` over the groups trained at once."""
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
    """What the training of one seed took, or of several at once."""

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

    def nested_run(
        self, name: str, entry_point: str, *, parent: str | None = None
    ) -> AbstractContextManager[str]: ...
    def log_begin(self, plan: Plan, splits: Splits, device: Device, *, seeds_at_once: int) -> None: ...
    def log_epoch(self, epoch: Epoch, *, run_id: str | None = None) -> None: ...
    def log_end(
        self, trained: Trained, speed: Speed, plan: Plan, splits: Splits, device: Device
    ) -> dict[str, Any]: ...


def choose(settings: Speedrun, device: str, *, backend: str | None = None) -> Chosen:
    """What is recorded for a target and a kind of device; imports nothing heavy.

    Raises:
        FmnistError: If it is for another backend than one that was selected already.
    """
    record = records.find(settings.target, device)
    names = ("dataset", "data_dir", "device", "seed", *(("backend",) if settings.backend != AUTO else ()))
    texts = {**record.texts, **{name: str(getattr(settings, name)) for name in names}}
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


@dataclass(frozen=True)
class Command:
    """What ties the trainings of one command to a device and to people."""

    chosen: Chosen
    """With its plan settled."""
    device: Device
    """Of this process."""
    price_per_hour: float | None
    run_id: str
    """Under which each seed has a run."""
    tracking: Tracking
    progress: Callable[[str, int], Progress]
    """Of a name and a number of epochs."""


def run(command: Command, seeds: Sequence[int], splits: Splits) -> list[dict[str, Any]]:
    """Trains and tests the seeds, one after the other or at once; gives their results.

    The splits are those that `load` gives, which is called again on the clock.
    """
    training.prepare(command.chosen.plan, splits)  # imports and compiles what the clock shall not see
    plans = [dataclasses.replace(command.chosen.plan, seed=seed) for seed in seeds]
    results = []
    for group in together.groups(command.chosen.plan, splits, plans):
        results += _train(command, group)
    return results


@dataclass
class _Begun:
    """A seed whose run is open; the training gives it the rest."""

    run_id: str
    fitted: Fitted = field(init=False)
    speed: Speed = field(init=False)
    result: dict[str, Any] = field(init=False)


def _train(command: Command, plans: Sequence[Plan]) -> list[dict[str, Any]]:
    chosen, tracking = command.chosen, command.tracking
    began = perf_counter()
    splits = load(chosen.settings)
    load_seconds = perf_counter() - began

    @contextmanager
    def seed_run(plan: Plan) -> Iterator[_Begun]:
        name = f"speedrun {chosen.record.name} · seed {plan.seed}"
        with tracking.nested_run(name, "train", parent=command.run_id) as run_id:
            tracking.log_begin(plan, splits, command.device, seeds_at_once=len(plans))
            begun = _Begun(run_id)
            yield begun
            trained = training.tested(begun.fitted, splits)
            begun.result = tracking.log_end(trained, begun.speed, plan, splits, command.device)

    def on_epoch(index: int, epoch: Epoch) -> None:
        tracking.log_epoch(epoch, run_id=begun[index].run_id)
        progress.step(str(epoch) if len(plans) == 1 else f"{epoch}  seed {plans[index].seed}")

    clock, title = training.Clock(command.device.kind), f"speedrun {chosen.record.name} · {together.which(plans)}"
    with ExitStack() as runs:  # MLflow ends the run that was begun last first
        begun = [runs.enter_context(seed_run(plan)) for plan in plans]
        with command.progress(title, len(plans) * chosen.plan.recipe.epochs) as progress:
            fitted = together.fit(plans, splits, on_epoch, clock=clock)
        for each, found in zip(begun, fitted, strict=True):
            each.fitted, each.speed = found, _speed(load_seconds, clock, found, command.price_per_hour)
    return [each.result for each in begun]


def _speed(load_seconds: float, clock: training.Clock, fitted: Fitted, price_per_hour: float | None) -> Speed:
    train_seconds = sum(epoch.seconds for epoch in fitted.history)
    seconds = load_seconds + clock.prepare_seconds + train_seconds
    return Speed(
        load_seconds=load_seconds,
        prepare_seconds=clock.prepare_seconds,
        train_seconds=train_seconds,
        compile_seconds=clock.compile_seconds,
        joules=None if clock.joules is None else clock.joules / train_seconds * seconds,
        price_per_hour=price_per_hour,
    )


def outcome(record: Record, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the seeds of a record come to: the verdict, and the spread of each figure that all of them have."""
    firsts = [0]  # of each group
    while (after := firsts[-1] + results[firsts[-1]]["seeds_at_once"]) < len(results):
        firsts.append(after)
    spreads = {}
    for name in REPORTED:
        among = [results[place] for place in firsts] if name in CLOCKED else results
        values = [result[name] for result in among]
        if None not in values:
            spreads[name] = spread(values)
    accuracy, seconds = spreads["test_accuracy"], spreads["seconds"]
    # A mean of floats may come out a hair below a target that the sum of right answers reaches.
    reached = None if record.goal is None else accuracy.mean > record.goal - 1e-9
    word = {None: "most accurate recipe", True: "reached", False: "missed"}[reached]
    figures = {name: dataclasses.asdict(each) for name, each in spreads.items()}
    middle, low, high = (three_digits(each) for each in (seconds.mean, seconds.min, seconds.max))
    between = f" ({low}-{high})" if len(firsts) > 1 else ""
    sizes = [results[place]["seeds_at_once"] for place in firsts]
    if max(sizes) > 1:
        between += f" for {' and '.join(map(str, sizes))} seeds at once"
    return {
        "verdict": f"**{word}**: mean {_accuracy(figures['test_accuracy'])} in {middle} s{between}",
        "target": record.target,
        "reached": reached,
        "repeats": len(results),
        "seeds": [result["seed"] for result in results],
        "seeds_at_once": sizes,
        "joules": UNKNOWN,
        **{name: {key: value for key, value in each.items() if key != "n"} for name, each in figures.items()},
    }


def row(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The line of a board, under `BOARD`, for a whole result: that of `outcome`, and where and how it was made."""
    seconds, other = result["seconds"], result["dataset"]
    target = result["target"] if result["goal"] is None else f"{result['target']} %"
    names = ("mean", "min", "max") if seconds["std"] is None else ("mean", "min", "max", "ci95_low", "ci95_high")
    mean, low, high, *interval = (three_digits(seconds[name]) for name in names)
    between = f"{'-'.join(interval)}; " * bool(interval) + f"{low}-{high}"
    sizes = result.get("seeds_at_once", [1])  # older results don't say
    if max(sizes) > 1:
        between += f"; {' and '.join(map(str, sizes))} seeds at once"
    return (
        target if other == "fashion-mnist" else f"{target} of {other}",
        {None: "–", True: "yes", False: "no"}[result["reached"]],
        _accuracy(result["test_accuracy"] | {"n": result["repeats"]}),
        f"{mean} ({between})",
        three_digits(result["compile_seconds"]["mean"]),
        UNKNOWN if result["joules"] == UNKNOWN else three_digits(result["joules"]["mean"]),
        three_digits(result["money"]["mean"]) if result.get("money") else "–",
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
            *(UNKNOWN if result[name] is None else three_digits(result[name]) for name in names),
        )
        for result in results
    ]
    return markdown.table(heads, rows)


def _accuracy(figures: Mapping[str, Any]) -> str:
    known = figures["std"] is not None
    between = f"{figures['ci95_low']:.2%}-{figures['ci95_high']:.2%}, " if known else ""
    return f"{figures['mean']:.2%} ({between}n={figures['n']})"
