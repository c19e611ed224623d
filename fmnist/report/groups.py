"""Trainings that differ in nothing but the seed, put together; and which of them are shown to be better."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fmnist.report.records import Training
from fmnist.statistics import Spread, holm, mcnemar, spread, welch, wilson

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Group:
    """The same model, recipe, data and kind of device; one member a seed."""

    name: str
    """Unique in the report; the model's, and what sets it apart from others of that model."""
    members: Sequence[Training]
    again: Sequence[Training]
    """Trainings of a seed that a member has already; they count for nothing."""

    @property
    def first(self) -> Training:
        return self.members[0]

    @property
    def accuracy(self) -> Spread:
        return spread([each.accuracy for each in self.members])

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %: of the mean over seeds, by Student's t; of one model, over the test images, by Wilson."""
        figures = self.accuracy
        if figures.ci95_low is not None and figures.ci95_high is not None:
            return figures.ci95_low, figures.ci95_high
        n = self.first.num_images
        return wilson(round(self.first.accuracy * n), n) if n else None

    @property
    def devices(self) -> str:
        """The kind, and each that computed; the first is the one that `epoch_seconds` are of."""
        return f"{self.first.device}: {'; '.join(dict.fromkeys(each.run.device for each in self.members))}"

    @property
    def epoch_seconds(self) -> Spread | None:
        """Of one machine alone."""
        own = [each for each in self.members if each.run.device == self.first.run.device]
        seconds = [each for member in own for each in member.epoch_seconds]
        return spread(seconds) if seconds else None

    @property
    def seeds(self) -> str:
        return ", ".join(str(each.seed) for each in self.members)


@dataclass(frozen=True)
class Comparison:
    """Two groups of the same data, and how likely so great a difference is by chance."""

    better: Group
    worse: Group
    test: str
    """What was tested, in words."""
    p: float | None
    """After Holm; None if there is nothing to test with."""

    @property
    def is_shown(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def groups(trainings: Sequence[Training]) -> list[Group]:
    """All groups; by data, those with most runs first, then the most accurate first."""
    found: dict[tuple[object, ...], dict[int, list[Training]]] = {}
    for each in sorted(trainings, key=lambda each: each.run.started, reverse=True):
        key = (each.digest, each.model, tuple(sorted(each.recipe.items())), each.device)
        found.setdefault(key, {}).setdefault(each.seed, []).append(each)
    made = []
    for seeds in found.values():
        members = [seeds[seed][0] for seed in sorted(seeds)]
        again = [each for seed in seeds for each in seeds[seed][1:]]
        made.append(Group(_name(members[0], [own[min(own)][0] for own in found.values()]), members, again))
    sizes = {each.digest: sum(other.digest == each.digest for other in trainings) for each in trainings}
    return sorted(made, key=lambda each: (-sizes[each.first.digest], each.first.digest, -each.accuracy.mean))


def by_data(found: Sequence[Group]) -> list[list[Group]]:
    """The groups of each data, as they come."""
    return [list(own) for _, own in itertools.groupby(found, key=lambda each: each.first.digest)]


def comparisons(found: Sequence[Group]) -> list[Comparison]:
    """Each pair of groups of the same data."""
    pairs = list(itertools.combinations(sorted(found, key=lambda each: -each.accuracy.mean), 2))
    tested = [_test(*pair) for pair in pairs]
    adjusted = iter(holm([p for _, p in tested if p is not None]))
    return [
        Comparison(*pair, test, None if p is None else next(adjusted))
        for pair, (test, p) in zip(pairs, tested, strict=True)
    ]


def ranks(found: Sequence[Group], compared: Sequence[Comparison]) -> list[int]:
    """1, and one more for each group that is shown to be better; none is before one whose mean is higher."""
    better = [1 + sum(pair.worse is each and pair.is_shown for pair in compared) for each in found]
    return [
        max(other for group, other in zip(found, better, strict=True) if group.accuracy.mean >= each.accuracy.mean)
        for each in found
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of those points (cost, gain) that no other beats in one without losing in the other."""
    return [
        place
        for place, (cost, gain) in enumerate(points)
        if not any(
            other_cost <= cost and other_gain >= gain and (other_cost, other_gain) != (cost, gain)
            for other_cost, other_gain in points
        )
    ]


def _test(one: Group, other: Group) -> tuple[str, float | None]:
    if min(len(one.members), len(other.members)) > 1:
        values = [[each.accuracy for each in group.members] for group in (one, other)]
        return f"Welch's t over {len(values[0])} and {len(values[1])} seeds", welch(*values)
    left, right = (
        next((each.answers for each in group.members if each.answers is not None), None) for group in (one, other)
    )
    if left is None or right is None or not np.array_equal(left.label, right.label):
        return "none: one of them has one seed, and its answers were not kept", None
    hits = left.predicted == left.label, right.predicted == right.label
    alone = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
    text = (
        f"McNemar's, of one trained model each: alone right on {alone[0]} and {alone[1]} of {len(hits[0])} images"
    )
    return text, mcnemar(*alone)


def _name(training: Training, all_first: Sequence[Training]) -> str:
    """The model, and the least of its settings that tells it from the others of that model."""
    alike = [each for each in all_first if each.model == training.model]
    facts = [
        each.recipe | {"device": each.device, "dataset": each.dataset, "digest": each.digest[:6]} for each in alike
    ]
    own = facts[next(place for place, each in enumerate(alike) if each is training)]
    varied = [name for name in own if len({fact.get(name) for fact in facts}) > 1]
    if "dataset" in varied and len({(fact["dataset"], fact["digest"]) for fact in facts}) == len(
        {fact["dataset"] for fact in facts}
    ):
        varied.remove("digest")
    telling = _telling(own, [fact for fact in facts if fact is not own], varied)
    bare = ("augment", "device", "dataset", "optimizer", "precision", "backend", "trainer")
    parts = [
        own[name] if name in bare else f"{name} {own[name]}"
        for name in varied
        if name in telling and own.get(name, "none") != "none"
    ]
    return " · ".join([training.model, *parts])


def _telling(own: Mapping[str, str], others: Sequence[Mapping[str, str]], varied: Sequence[str]) -> set[str]:
    """Few settings that tell one's own from the others, those that have a value before those that are off."""
    telling = [name for name in varied if any(other.get(name) != own.get(name) for other in others)]
    if not telling:
        return set()

    def worth(name: str) -> tuple[bool, int, int]:
        values = [other.get(name) for other in others]
        return own.get(name, "none") != "none", sum(value != own.get(name) for value in values), len(set(values))

    best = max(telling, key=worth)
    return {best} | _telling(own, [other for other in others if other.get(best) == own.get(best)], varied)
