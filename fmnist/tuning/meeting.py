"""Brings the trainings of several trials together, each of which runs in a thread of its own."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from fmnist import together, training
from fmnist.data import Splits
from fmnist.training import Epoch, Fitted, Plan


class Meeting:
    """Of trials whose plans differ in their seeds alone: as soon as all have come, all are trained at once.

    Where that fails, each is trained alone, one after the other: of several seeds, one that diverges fails alone.

    Args:
        count: How many trials.
        splits: What to train on.
        on_begin: Is called when all have come, or one of them can't.
    """

    def __init__(self, count: int, splits: Splits, on_begin: Callable[[], None]) -> None:
        self._splits, self._on_begin = splits, on_begin
        self._all_there = threading.Barrier(count, self._fit_all)
        self._asked: dict[int, tuple[Plan, Callable[[Epoch], None]]] = {}  # by seed
        self._fitted: dict[int, Fitted] = {}
        self._turn = threading.Lock()

    @contextmanager
    def fitted(self, plan: Plan, on_epoch: Callable[[Epoch], None]) -> Iterator[Fitted]:
        """What `fmnist.training.fit` gives; while this is open, the other trials wait for their turn.

        Args:
            plan: What to train, settled.
            on_epoch: Is told of every epoch, in whatever thread; of some again where it is then trained alone.
        """
        self._asked[plan.seed] = plan, on_epoch
        with suppress(threading.BrokenBarrierError):
            self._all_there.wait()
        with self._turn:
            known = plan.seed in self._fitted
            yield self._fitted.pop(plan.seed) if known else training.fit(plan, self._splits, on_epoch)

    def cancel(self) -> None:
        """To be called for a trial that ends otherwise: the others don't wait for it."""
        self._all_there.abort()
        self._on_begin()

    def _fit_all(self) -> None:
        self._on_begin()
        plans = [plan for plan, _ in self._asked.values()]
        with suppress(Exception):  # whatever it is, a trial that is trained alone tells it
            for group in together.groups(plans[0], self._splits, plans):
                fitted = together.fit(group, self._splits, partial(self._tell, group))
                self._fitted |= {plan.seed: each for plan, each in zip(group, fitted, strict=True)}

    def _tell(self, group: Sequence[Plan], index: int, epoch: Epoch) -> None:
        _, on_epoch = self._asked[group[index].seed]
        on_epoch(epoch)
