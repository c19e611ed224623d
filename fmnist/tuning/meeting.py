"""Brings the trainings of several trials together, each of which runs in a thread of its own."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import perf_counter

from fmnist import together
from fmnist.data import Splits
from fmnist.training import Fitted, Plan


class Meeting:
    """Of trials whose plans differ in their seeds alone: as soon as all have come, all are trained at once.

    Where that fails, each is trained alone, one after the other: of several seeds, one that diverges fails alone.

    Args:
        count: How many trials.
        splits: What to train on.
        on_drawn: Is called when all have drawn their points, or one of them never will.
    """

    def __init__(self, count: int, splits: Splits, on_drawn: Callable[[], None]) -> None:
        self._splits, self._on_drawn, self._left = splits, on_drawn, count
        self._all_there = threading.Barrier(count, self._fit_all)
        self._plans: list[Plan] = []
        self._fitted: dict[int, tuple[Fitted, float]] = {}  # by seed
        self._turn = threading.Lock()

    def drawn(self) -> None:
        """To be called by each trial when it has its point."""
        with self._turn:
            self._left -= 1
            if not self._left:
                self._on_drawn()

    @contextmanager
    def fitted(self, plan: Plan) -> Iterator[tuple[Fitted, float]]:
        """What `fmnist.training.fit` gives for a settled plan, and the seconds that it took, those of all at once.

        While this is open, the other trials wait for their turn.
        """
        self._plans.append(plan)
        with suppress(threading.BrokenBarrierError):
            self._all_there.wait()
        with self._turn:
            yield self._fitted.pop(plan.seed) if plan.seed in self._fitted else self._fit([plan])[plan.seed]

    def leave(self) -> None:
        """To be called for each trial that has ended, however it did: those that haven't met go on alone."""
        self._all_there.abort()
        self._on_drawn()

    def _fit_all(self) -> None:
        with suppress(Exception):  # whatever it is, the trials that are then trained alone tell it
            for group in together.groups(self._plans[0], self._splits, self._plans):
                with suppress(Exception):
                    self._fitted |= self._fit(group)

    def _fit(self, plans: Sequence[Plan]) -> dict[int, tuple[Fitted, float]]:
        start = perf_counter()
        found = together.fit(plans, self._splits, lambda *_: None)
        seconds = perf_counter() - start
        return {plan.seed: (each, seconds) for plan, each in zip(plans, found, strict=True)}
