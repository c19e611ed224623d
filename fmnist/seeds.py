"""Trains a plan over its seeds, each of them only as far as that isn't done yet.

What an earlier run of the same training left behind (`fmnist.checkpoint`) is gone on from; where all of it was
trained and logged, its result stands.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from fmnist import checkpoint, training
from fmnist.data import Splits
from fmnist.device import Device
from fmnist.settings import Train
from fmnist.training import Epoch, Plan, Trained


class Tracking(Protocol):
    """What is told of trainings; `fmnist.tracking.training` is one."""

    def is_logged(self, model_uri: str) -> bool: ...
    def nested_run(self, name: str, entry_point: str) -> AbstractContextManager[str]: ...
    def adopt(self, run_id: str) -> None: ...
    def log_finished_elsewhere(self, run_id: str) -> None: ...
    def log_begin(self, plan: Plan, splits: Splits, device: Device, *, resumed_from: str | None) -> None: ...
    def log_epoch(self, epoch: Epoch) -> None: ...
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
    first, last = seeds[0].plan, seeds[-1].plan
    which = f"seed {first.seed}" if len(seeds) == 1 else f"seeds {first.seed}-{last.seed}"
    return f"{first.model.name} · {device.kind} · {which}"


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
            results = [self._nested(each) for each in self._seeds]
            best = max(results, key=lambda result: result["validation_accuracy"])
            together = tracking.log_repeats(results)
            return best | {"together": together}, {"run_id": run_id, **together}
        if first.earlier and first.earlier.result:
            tracking.log_finished_elsewhere(first.earlier.run_id)
            return first.earlier.result, first.earlier.result
        result = self._train(first, run_id)
        return result, result

    def forget(self) -> None:
        """Drops what was kept; to be called when all is trained, logged and registered, and this is closed."""
        for each in self._seeds:
            checkpoint.discard_all(each.identity, each.plan.recipe.epochs, but=self._elsewhere)

    def _nested(self, seed: Seed) -> dict[str, Any]:
        tracking = self._command.tracking
        if seed.earlier and seed.earlier.result:
            tracking.adopt(seed.earlier.run_id)
            return seed.earlier.result
        with tracking.nested_run(name([seed], self._command.device), "train") as run_id:
            return self._train(seed, run_id)

    def _train(self, seed: Seed, run_id: str) -> dict[str, Any]:
        command, earlier = self._command, seed.earlier
        tracking, epochs = command.tracking, seed.plan.recipe.epochs
        plan = training.settle(seed.plan, command.device)
        keeper = self.enter_context(checkpoint.Keeper(run_id, seed.identity, epochs))

        def on_epoch(epoch: Epoch) -> None:
            tracking.log_epoch(epoch)
            progress.step(str(epoch))

        def on_checkpoint(state: checkpoint.Checkpoint) -> None:
            keeper.save(state)
            if earlier:
                checkpoint.discard(earlier)

        tracking.log_begin(plan, command.splits, command.device, resumed_from=earlier.run_id if earlier else None)
        with command.progress(plan.model.name, epochs) as progress:
            start = earlier.checkpoint if earlier else None
            trained = training.train(plan, command.splits, on_epoch, start=start, on_checkpoint=on_checkpoint)
        result = tracking.log_end(trained, plan, command.splits, command.device, tensorboard=command.tensorboard)
        keeper.finish(result)
        return result
