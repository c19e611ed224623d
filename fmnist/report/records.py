"""What a report is made of: finished runs, as plain records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist.machine import UNKNOWN


@dataclass(frozen=True)
class Run:
    """A finished run of MLflow."""

    run_id: str
    name: str
    experiment: str
    started: str
    """Date and minute, in UTC."""
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    command: str
    """Does it again; empty if it can't be known."""

    @property
    def device(self) -> str:
        """What computed."""
        for kind, name in (("device", "device.name"), ("machine", "machine.cpu")):
            if name in self.tags:
                return f"{self.tags[name]}, {self.tags.get(f'{kind}.threads', UNKNOWN)} threads"
        return UNKNOWN

    @property
    def versions(self) -> str:
        """Of the libraries that took part."""
        found = {name.removeprefix("version."): each for name, each in self.tags.items() if "version." in name}
        return ", ".join(f"{name} {each}" for name, each in sorted(found.items())) or UNKNOWN

    @property
    def commit(self) -> str:
        """The first twelve digits, and a plus if files differed from it."""
        digits, plus, _ = self.tags.get("commit", self.tags.get("mlflow.source.git.commit", UNKNOWN)).partition(
            "+"
        )
        return digits[:12] + plus


@dataclass(frozen=True)
class Answers:
    """What a model said of each image of the test split; all are `(batch,)`."""

    label: NDArray[np.uint8]
    """What is right."""
    predicted: NDArray[np.uint8]
    probability: NDArray[np.float32]
    """That the model gave to what it predicted."""


@dataclass(frozen=True)
class Training:
    """A run that trained one model with one seed and tested it."""

    run: Run
    curves: Mapping[str, Sequence[tuple[int, float]]]
    """By the metric's name: epoch and value."""
    confusion: NDArray[np.int64] | None
    """(true, predicted)."""
    class_names: tuple[str, ...]
    answers: Answers | None

    @property
    def model(self) -> str:
        return self.run.tags["model"]

    @property
    def dataset(self) -> str:
        return self.run.tags["dataset.name"]

    @property
    def digest(self) -> str:
        return self.run.tags["dataset.digest"]

    @property
    def device(self) -> str:
        """The kind: cpu or gpu."""
        return self.run.tags["device"]

    @property
    def seed(self) -> int:
        return int(self.run.params["recipe.seed"])

    @property
    def accuracy(self) -> float:
        return self.run.metrics["test/accuracy"]

    @property
    def num_parameters(self) -> int:
        return int(self.run.metrics["num_parameters"])

    @property
    def num_images(self) -> int | None:
        """Of the test split."""
        known = self.run.metrics.get("data/num_test")
        return int(known) if known is not None else None

    @cached_property
    def epoch_seconds(self) -> list[float]:
        """Of all epochs but the first, which compiles; none where several seeds were trained in them."""
        if self.run.tags.get("seeds_at_once", "1") != "1":
            return []
        return [value for step, value in self.curves.get("perf/epoch_seconds", ()) if step > 1]

    @cached_property
    def recipe(self) -> dict[str, str]:
        """All that is resolved but the seed and the device."""
        own = {name: value for name, value in self.run.params.items() if name.startswith(("recipe.", "hyper."))}
        names = {name.partition(".")[2]: value for name, value in own.items()}
        return {name: value for name, value in names.items() if name not in ("seed", "device")}


@dataclass(frozen=True)
class Benchmark:
    """A run that timed a grid."""

    run: Run
    rows: list[dict[str, Any]]
    """Of its benchmark.json."""


@dataclass(frozen=True)
class Search:
    """A run that searched hyperparameters."""

    run: Run
    result: dict[str, Any]
    """Of its study/result.json."""
    trials: Sequence[tuple[int, float]]
    """Of those that ended: number and validation accuracy."""


@dataclass(frozen=True)
class Claimed:
    """A run that ran what is recorded for a target, over several seeds."""

    run: Run
    result: dict[str, Any]
    """Of its speedrun.json."""


@dataclass(frozen=True)
class Gathered:
    """All that a report tells of."""

    trainings: Sequence[Training]
    benchmarks: Sequence[Benchmark]
    searches: Sequence[Search]
    experiments: Sequence[str]
    num_unfinished: int
    speedruns: Sequence[Claimed] = ()
