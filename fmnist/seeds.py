"""Trains a plan over its seeds, each of them only as far as that isn't done yet.

What an earlier run of the same training left behind (`fmnist.checkpoint`) is gone on from; where all of it was
trained and logged, its result stands.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from fmnist import checkpoint, together, training
from fmnist.data import Splits
from fmnist.device import Device
from fmnist.settings import Train
from fmnist.training import Epoch, Fitted, Plan, Trained


class Tracking(Protocol):
    """What is told of trainings; `fmnist.tracking.training` is one."""

    def is_logged(self, model_uri: str) -> bool: ...
    def nested_run(
        self, name: str, entry_point: str, *, parent: str | None = None
    ) -> AbstractContextManager[str]: ...
    def adopt(self, run_id: str) -> None: ...
    def log_finished_elsewhere(self, run_id: str) -> None: ...
    def log_begin(
        self, plan: Plan, splits: Splits, device: Device, *, resumed_from: str | None, seeds_at_once: int
    ) -> None: ...
    def log_epoch(self, epoch: Epoch, *, run_id: str | None = None) -> None: ...
    def log_end(
        self, trained: Trained, plan: Plan, splits: Splits, device: Device, *, tensorboard: bool
    ) -> dict[str, Any]: ...
    def log_repeats(self, results: list[dict[str, Any]]) -> dict[str, Any]: ...


class Progress(AbstractContextManager[Any], Protocol):
    """What shows the epochs as they end."""

    def step(self, text: str) -> None: ...


@dataclass(frozen=True)
class Seed:
    """A training with one seed, and what an earlier run of it left."""

    plan: Plan
    identity: dict[str, Any]
    earlier: checkpoint.Found | None


@dataclass(frozen=True)
class Command:
    """What ties the trainings of one command to their data, to a device and to people."""

    splits: Splits
    device: Device
    tracking: Tracking
    progress: Callable[[str, int], Progress]
    """Of a name and a number of epochs."""
    tensorboard: bool


def find(plan: Plan, splits: Splits, settings: Train) -> list[Seed]:
    """The trainings that the settings ask for; imports nothing heavy.

    Raises:
        FmnistError: If the run that is to be gone on from isn't one of this training.
    """
    found = []
    for index in range(settings.repeats):
        own = dataclasses.replace(plan, seed=settings.seed + index)
        identity = training.identity(own, splits, settings.device)
        epochs = plan.recipe.epochs
        found.append(
            Seed(own, identity, checkpoint.find(settings.resume, identity, epochs) if settings.resume else None)
        )
    return found


def name(seeds: Sequence[Seed], device: Device) -> str:
    """What a run of these trainings is called."""
    plans = [each.plan for each in seeds]
    return f"{plans[0].model.name} · {device.kind} · {together.which(plans)}"


class Work(ExitStack):
    """The trainings of a command while it is at them: while this is open, no other process goes on with them."""

    def __init__(self, seeds: Sequence[Seed], command: Command) -> None:
        super().__init__()
        self._command, self._seeds = command, list(seeds)
        self._elsewhere = set()
        for index, each in enumerate(seeds):
            if each.earlier:
                self.callback(each.earlier.lock.release)
                if each.earlier.result and not command.tracking.is_logged(each.earlier.result["model_uri"]):
                    self._elsewhere.add(each.earlier.run_id)  # another store holds it
                    self._seeds[index] = dataclasses.replace(each, earlier=None)

    def train(self, run_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Trains what is missing in a run that is open; gives the best seed's result, and that of the command.

        Of several seeds the first holds the second, under `together`.
        """
        first, tracking = self._seeds[0], self._command.tracking
        if len(self._seeds) > 1:
            results = self._all(run_id)
            best = max(results, key=lambda result: result["validation_accuracy"])
            spreads = tracking.log_repeats(results)
            return best | {"together": spreads}, {"run_id": run_id, **spreads}
        if first.earlier and first.earlier.result:
            tracking.log_finished_elsewhere(first.earlier.run_id)
            return first.earlier.result, first.earlier.result
        begun = self._begin(first, run_id)
        self._fit([begun])
        self._end(begun)
        return begun.result, begun.result

    def forget(self) -> None:
        """Drops what was kept; to be called when all is trained, logged and registered, and this is closed."""
        for each in self._seeds:
            checkpoint.discard_all(each.identity, each.plan.recipe.epochs, but=self._elsewhere)

    def _all(self, run_id: str) -> list[dict[str, Any]]:
        """The results of several seeds, each in a run under this one."""
        command, results = self._command, dict[int, dict[str, Any]]()
        missing: dict[int, list[Seed]] = {}  # by the epochs that are done
        for seed in self._seeds:
            if seed.earlier and seed.earlier.result:
                command.tracking.adopt(seed.earlier.run_id)
                results[seed.plan.seed] = seed.earlier.result
            else:
                state = seed.earlier.checkpoint if seed.earlier else None
                missing.setdefault(len(state.history) if state else 0, []).append(seed)
        for seeds in missing.values():
            plan = training.settle(seeds[0].plan, command.device)
            for group in together.groups(plan, command.splits, seeds):
                results |= {result["seed"]: result for result in self._nested(group, run_id)}
        return [results[seed.plan.seed] for seed in self._seeds]

    def _nested(self, seeds: Sequence[Seed], parent: str) -> list[dict[str, Any]]:
        """Trains seeds at once, each in a run of its own; MLflow ends the one that was begun last first."""
        with ExitStack() as runs:
            begun = [runs.enter_context(self._run(each, parent, len(seeds))) for each in seeds]
            self._fit(begun)
        return [each.result for each in begun]

    @contextmanager
    def _run(self, seed: Seed, parent: str, seeds_at_once: int) -> Iterator["_Begun"]:
        nested_run, title = self._command.tracking.nested_run, name([seed], self._command.device)
        with nested_run(title, "train", parent=parent) as run_id:
            begun = self._begin(seed, run_id, seeds_at_once)
            yield begun
            self._end(begun)

    def _begin(self, seed: Seed, run_id: str, seeds_at_once: int = 1) -> "_Begun":
        command, plan = self._command, training.settle(seed.plan, self._command.device)
        keeper = self.enter_context(checkpoint.Keeper(run_id, seed.identity, plan.recipe.epochs))
        resumed_from = seed.earlier.run_id if seed.earlier else None
        command.tracking.log_begin(
            plan, command.splits, command.device, resumed_from=resumed_from, seeds_at_once=seeds_at_once
        )
        return _Begun(run_id, plan, keeper, seed.earlier)

    def _fit(self, begun: Sequence["_Begun"]) -> None:
        splits, plans = self._command.splits, [each.plan for each in begun]
        starts = [each.earlier.checkpoint if each.earlier else None for each in begun]
        title, epochs = plans[0].model.name, plans[0].recipe.epochs

        def on_epoch(index: int, epoch: Epoch) -> None:
            self._command.tracking.log_epoch(epoch, run_id=begun[index].run_id)
            progress.step(str(epoch) if len(plans) == 1 else f"{epoch}  seed {plans[index].seed}")

        def on_checkpoint(index: int, state: checkpoint.Checkpoint) -> None:
            begun[index].keeper.save(state)
            if earlier := begun[index].earlier:
                checkpoint.discard(earlier)

        with self._command.progress(title, epochs * len(plans)) as progress:
            fitted = together.fit(plans, splits, on_epoch, starts=starts, on_checkpoint=on_checkpoint)
        for each, found in zip(begun, fitted, strict=True):
            each.fitted = found

    def _end(self, begun: "_Begun") -> None:
        command, trained = self._command, training.tested(begun.fitted, self._command.splits)
        begun.result = command.tracking.log_end(
            trained, begun.plan, command.splits, command.device, tensorboard=command.tensorboard
        )
        begun.keeper.finish(begun.result)


@dataclass
class _Begun:
    """A training whose run is open; `_fit` gives it the model, `_end` the result."""

    run_id: str
    plan: Plan
    """Settled."""
    keeper: checkpoint.Keeper
    earlier: checkpoint.Found | None
    fitted: Fitted = field(init=False)
    result: dict[str, Any] = field(init=False)
