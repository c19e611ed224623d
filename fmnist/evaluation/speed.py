"""How fast a model answers, in the form in which it is served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 256
NUM_ROUNDS = 5
NUM_CALLS = 60  # a round, if they fit in its time
ROUND_SECONDS = 0.25
Answer = Callable[[NDArray[np.float32]], Any]
"""Answers pixels `(batch, 28, 28)`, in whatever form."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of calls, by round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def median(self) -> float:
        """Of all calls."""
        return float(np.median(np.concatenate(self.rounds)))

    @property
    def p95(self) -> float:
        """What 95 of 100 calls didn't exceed."""
        return float(np.percentile(np.concatenate(self.rounds), 95))

    @property
    def medians(self) -> tuple[float, ...]:
        """Of each round."""
        return tuple(float(np.median(each)) for each in self.rounds)

    @property
    def n(self) -> int:
        """How many calls were timed."""
        return sum(map(len, self.rounds))


def latencies(answers: Sequence[Answer], pixels: NDArray[np.float32]) -> list[Latency]:
    """Times calls of several models with the same pixels in turns, after some that don't count."""
    rounds: list[list[tuple[float, ...]]] = [[] for _ in answers]
    for answer in answers:
        _round(answer, pixels)
    for _ in range(NUM_ROUNDS):
        for place, answer in enumerate(answers):
            rounds[place].append(_round(answer, pixels))
    return [Latency(tuple(each)) for each in rounds]


def _round(answer: Answer, pixels: NDArray[np.float32]) -> tuple[float, ...]:
    seconds: list[float] = []
    while len(seconds) < NUM_CALLS and (not seconds or sum(seconds) < ROUND_SECONDS):
        start = perf_counter()
        answer(pixels)
        seconds.append(perf_counter() - start)
    return tuple(1000 * each for each in seconds)
