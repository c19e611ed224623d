"""Whether a training that was done again came to the same: bit for bit, or within the spread of its seeds.

Figures are compared exactly, those of every epoch too, and the weights by their SHA-256. Where they aren't equal,
the difference of the final figures is held against what seeds alone make of them, if that is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmnist import markdown
from fmnist.statistics import difference_band, spread

BITS, FIGURES, SEEDS, DIFFERS = (
    "equal, bit for bit",
    "equal in every figure",
    "equal within the spread of seeds",
    "differs",
)
FINAL = ("test/accuracy", "test/loss", "val/final_accuracy", "val/final_loss")
MIN_SEEDS = 3
"""Of fewer, the spread says next to nothing: any two figures would be equal within it."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Record:
    """What the run of a training says that it came to, and under what."""

    run_id: str
    seed: int
    metrics: Mapping[str, Mapping[int, float]]
    """Values by step."""
    weights: str | None
    """SHA-256 of the final ones, if the run has it."""
    facts: Mapping[str, str]
    """Machine, versions, code, device and its conditions."""

    def final(self, name: str) -> float | None:
        """The last value of a metric, if it has one."""
        values = self.metrics.get(name)
        return values[max(values)] if values else None


@dataclass(frozen=True)
class Figure:
    """A figure of both runs; None where one hasn't it."""

    name: str
    step: int
    then: float | None
    now: float | None

    @property
    def difference(self) -> float | None:
        return None if self.then is None or self.now is None else self.now - self.then


@dataclass(frozen=True)
class Comparison:
    """Two trainings with one seed, and what is to be said of them."""

    then: Record
    now: Record
    verdict: str
    reason: str
    differing: tuple[Figure, ...]
    num_compared: int
    allowed: Mapping[str, float]
    """By how much final figures may differ; empty where the spread of seeds isn't known or takes no part."""


def compare(then: Record, now: Record, others: Sequence[Record], *, num_pairs: int = 1) -> Comparison:
    """Compares a training with its first run.

    Args:
        then: The first run.
        now: The one that did it again.
        others: Runs of the same recipe with other seeds, one for each seed.
        num_pairs: How many such comparisons decide together.
    """
    figures = [
        Figure(name, step, then.metrics.get(name, {}).get(step), now.metrics.get(name, {}).get(step))
        for name in sorted({*then.metrics, *now.metrics})
        for step in sorted({*then.metrics.get(name, {}), *now.metrics.get(name, {})})
    ]
    # what the first run never had can't differ; it is told of
    compared = [each for each in figures if each.name in then.metrics]
    differing = tuple(each for each in compared if each.then != each.now)
    same_weights = then.weights is not None and then.weights == now.weights
    allowed: dict[str, float] = {}
    if same_weights and not differing:
        verdict, reason = BITS, f"{len(compared)} figures and the SHA-256 of the weights"
    elif same_weights:
        verdict = DIFFERS
        reason = f"the weights are equal bit for bit, so run {then.run_id} has figures that it can't have come to"
    elif not differing and then.weights is None:
        verdict = FIGURES
        reason = f"{len(compared)} figures; run {then.run_id} has no SHA-256 of its weights to compare"
    else:
        judged = [name for name in FINAL if len(finals([then, now], name)) == 2]
        samples = {name: finals(others, name) for name in judged}
        allowed = {
            name: difference_band(values, num_compared=num_pairs * len(judged))
            for name, values in samples.items()
            if len(values) >= MIN_SEEDS
        }
        verdict, reason = _within(then, now, samples, allowed)
    return Comparison(then, now, verdict, reason, differing, len(compared), allowed)


def finals(records: Sequence[Record], name: str) -> list[float]:
    """The last values of a metric, of those that have it."""
    values = [each.final(name) for each in records]
    return [value for value in values if value is not None]


def _within(
    then: Record, now: Record, samples: Mapping[str, Sequence[float]], allowed: Mapping[str, float]
) -> tuple[str, str]:
    """The verdict, and why, on two trainings of which it is known that they aren't equal."""
    sizes = finals([then, now], "num_parameters")
    if len(set(sizes)) > 1:
        return DIFFERS, f"the models have {sizes[0]:.0f} and {sizes[1]:.0f} parameters"
    num_seeds = min(map(len, samples.values()), default=0)
    if not allowed or set(allowed) != set(samples):
        return DIFFERS, (
            f"it isn't known by how much seeds alone differ: the store has runs of {num_seeds} other seeds, "
            f"expected {MIN_SEEDS} at least; type -P repeats=5 to train them too"
        )
    differences = {name: abs(finals([now], name)[0] - finals([then], name)[0]) for name in samples}
    beyond = [
        f"{name} by {difference:.4g} (pairs of seeds: by up to {allowed[name]:.4g})"
        for name, difference in differences.items()
        if difference > allowed[name]
    ]
    if beyond:
        return DIFFERS, f"more than 95 of 100 pairs of seeds do: {'; '.join(beyond)}"
    return (
        SEEDS,
        f"{', '.join(samples)} differ by no more than 95 of 100 pairs of seeds do; n = {num_seeds} others",
    )


def overall(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison that speaks for all: the first of the worst."""
    return max(comparisons, key=lambda each: (BITS, FIGURES, SEEDS, DIFFERS).index(each.verdict))


def apart(then: Record, now: Record) -> dict[str, tuple[str, str]]:
    """What sets two runs apart: the facts in which they differ, then and now."""
    names = sorted({*then.facts, *now.facts})
    pairs = {name: (then.facts.get(name, NOT_RECORDED), now.facts.get(name, NOT_RECORDED)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def as_result(comparisons: Sequence[Comparison], others: Sequence[Record]) -> dict[str, Any]:
    """All that was found, of JSON's types."""
    worst = overall(comparisons)
    return {
        "verdict": worst.verdict,
        "reason": worst.reason,
        "apart": {name: list(pair) for name, pair in apart(worst.then, worst.now).items()},
        "spread": {
            "seeds": [each.seed for each in others],
            "runs": [each.run_id for each in others],
            **{name: vars(spread(values)) for name in FINAL if (values := finals(others, name))},
        },
        "seeds": [
            {
                "seed": each.then.seed,
                "reproduces": each.then.run_id,
                "run_id": each.now.run_id,
                "verdict": each.verdict,
                "reason": each.reason,
                "weights": {"then": each.then.weights, "now": each.now.weights},
                "num_compared": each.num_compared,
                "allowed": dict(each.allowed),
                "differing": [vars(figure) | {"difference": figure.difference} for figure in each.differing],
            }
            for each in comparisons
        ],
    }


def note(comparisons: Sequence[Comparison]) -> str:
    """The verdict for people, with tables of the final figures, of the epochs that differ, of what sets apart."""
    worst = overall(comparisons)
    lines = [f"**{worst.verdict[0].upper()}{worst.verdict[1:]}**: {worst.reason}."]
    for each in comparisons:
        if not each.differing and each.then.weights == each.now.weights:
            continue
        lines += ["", f"Seed {each.then.seed}: run {each.then.run_id} then, {each.now.run_id} now", ""]
        lines += markdown.table(("figure", "then", "now", "difference", "seeds differ by"), _rows(each))
    found = apart(worst.then, worst.now)
    if not found:
        return "\n".join([*lines, "", "Machine, versions, code and device are the same."])
    facts = [(name, *pair) for name, pair in found.items()]
    lines += ["", "What sets the two apart:", "", *markdown.table(("", "then", "now"), facts)]
    threads = found.get("device.threads", ("", ""))
    if worst.verdict != BITS and all(map(str.isdigit, threads)) and int(threads[0]) < int(threads[1]):
        last = int(threads[0]) - 1
        lines += ["", f"Sums depend on the threads: type `taskset -c 0-{last}` first, to have as many as then."]
    return "\n".join(lines)


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row for each metric that differs, with the greatest difference of its epochs, and one for the weights."""
    by_name: dict[str, list[Figure]] = {}
    for each in comparison.differing:
        by_name.setdefault(each.name, []).append(each)
    rows = []
    for name, found in by_name.items():
        most = max(found, key=lambda each: abs(each.difference or 0.0))
        of_epochs = len(comparison.then.metrics[name]) > 1 or most.step
        where = f", epoch {most.step} (of {len(found)} that differ)" if of_epochs else ""
        limit = comparison.allowed.get(name)
        cells = [markdown.number(value, ".6g", none=NOT_RECORDED) for value in (most.then, most.now)]
        difference = markdown.number(most.difference, "+.3g")
        rows.append((f"{name}{where}", *cells, difference, markdown.number(limit, ".3g", none="")))
    weights = [(each.weights or NOT_RECORDED)[:12] for each in (comparison.then, comparison.now)]
    if weights[0] != weights[1]:
        rows.append(("weights, SHA-256", *weights, "", ""))
    return rows
