"""Whether a model takes another's place: both answer the same images, which neither was trained on.

The decision is a function of what was measured; nothing here knows where models are kept.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import markdown
from fmnist.data import Split, Splits
from fmnist.errors import FmnistError
from fmnist.evaluation import evaluate
from fmnist.evaluation.corruptions import Predict, robustness
from fmnist.evaluation.speed import Latency
from fmnist.prediction import Labelled
from fmnist.statistics import agresti_min, mcnemar

MIN_IMAGES = 100
SIGNIFICANCE = 0.05
CLEARLY = 0.95
"""A latency or a size is less if it is at most this share of the other: a few bytes decide nothing."""
NUM_RESAMPLES = 20_000


@dataclass(frozen=True)
class Criteria:
    """What is asked of a candidate beside the comparison; None asks nothing."""

    margin: float = 0.0
    max_latency_ms: float | None = None
    max_calibration_error: float | None = None
    min_robustness: float | None = None
    min_photos: float | None = None


@dataclass(frozen=True)
class Contender:
    """What was measured of a model."""

    name: str
    right: NDArray[np.bool_]
    """Which images it got right, `(images,)`."""
    calibration_error: float
    robustness: float | None
    """None if it wasn't asked for."""
    latency: Latency
    """Of one image."""
    size_bytes: int
    """Of what serves."""
    photos: float | None = None
    """The share of photographs that it got right; None if there were none."""

    @property
    def accuracy(self) -> float:
        """The share that it got right."""
        return float(self.right.mean())


@dataclass(frozen=True)
class Comparison:
    """How two models did on the same images; differences are the candidate's less the incumbent's."""

    num_images: int
    only_candidate: int
    """Images that the candidate alone got right."""
    only_incumbent: int
    difference: float
    """In accuracy."""
    ci95_low: float
    ci95_high: float
    """The paired bootstrap's interval of it."""
    lowest: float
    """The lower end of Agresti and Min's interval of it, which has a width even where no pair differs."""
    p: float
    """McNemar's, exact."""
    faster: bool
    smaller: bool
    slower: bool
    larger: bool


@dataclass(frozen=True)
class Decision:
    """Whether the candidate takes the place, and why."""

    promoted: bool
    reason: str
    criteria: Criteria
    candidate: Contender
    incumbent: Contender | None = None
    comparison: Comparison | None = None
    failed: tuple[str, ...] = ()
    """The criteria that it doesn't meet, each with its figures."""


def other_dataset(candidate: str, other: str) -> FmnistError:
    """The error for a candidate and a champion of different datasets."""
    return FmnistError(
        f"the candidate was trained on {candidate}, the other on {other}: one can't stand for the other; train it "
        "with -P registered_model=NAME"
    )


def held_out(candidate: Splits, incumbent: Splits | None = None) -> Split:
    """The images of the candidate's validation split that neither was trained on.

    Raises:
        FmnistError: If these are too few, or the two were trained on different datasets or classes.
    """
    validation = candidate.validation
    if incumbent and incumbent.manifest["dataset"] != candidate.manifest["dataset"]:
        raise other_dataset(candidate.manifest["dataset"], incumbent.manifest["dataset"])
    if incumbent and incumbent.class_names != candidate.class_names:
        raise FmnistError(
            f"the two were trained on different classes, the candidate on {', '.join(candidate.class_names)}, the "
            f"other on {', '.join(incumbent.class_names)}: one can't stand for the other; train it with "
            "-P registered_model=NAME"
        )
    trained = [candidate.train] + ([incumbent.train] if incumbent else [])
    seen = {image.tobytes() for split in trained for image in split.images}
    new = np.array([image.tobytes() not in seen for image in validation.images])
    if new.sum() < MIN_IMAGES:
        raise FmnistError(
            f"expected at least {MIN_IMAGES} images of the candidate's validation split that neither was trained "
            f"on, there are {new.sum()}; train both with the same -P validation="
        )
    return Split(validation.images[new], validation.labels[new])


def describe(images: Split, candidate: Splits) -> str:
    """Which images decided, for people."""
    manifest = candidate.manifest
    return (
        f"Decided on {len(images):,} images of the candidate's validation split of {manifest['dataset']} (digest "
        f"{manifest['digest']}), that no version here was trained on. Hyperparameters and epochs may have been "
        "chosen by them, so the accuracies flatter a little. The test split took no part."
    )


def measure(
    name: str,
    predict: Predict,
    images: Split,
    *,
    latency: Latency,
    size_bytes: int,
    criteria: Criteria,
    photos: Labelled | None = None,
) -> Contender:
    """What a model does with images, and with photographs."""
    probabilities = predict(images.images)
    asked = criteria.min_robustness is not None
    return Contender(
        name=name,
        right=probabilities.argmax(axis=1) == images.labels,
        calibration_error=evaluate(probabilities, images.labels).calibration_error,
        robustness=robustness(predict, images.images, images.labels).mean if asked else None,
        latency=latency,
        size_bytes=size_bytes,
        photos=photos.accuracy(predict) if photos else None,
    )


def compare(candidate: Contender, incumbent: Contender) -> Comparison:
    """Sets two models' answers to the same images side by side."""
    count = len(candidate.right)
    only_candidate = int((candidate.right & ~incumbent.right).sum())
    only_incumbent = int((incumbent.right & ~candidate.right).sum())
    # Drawing images again with replacement is drawing how many there are of each kind of pair.
    shares = np.array([only_candidate, only_incumbent, count - only_candidate - only_incumbent]) / count
    drawn = np.random.default_rng(0).multinomial(count, shares, NUM_RESAMPLES)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / count, (2.5, 97.5))
    return Comparison(
        num_images=count,
        only_candidate=only_candidate,
        only_incumbent=only_incumbent,
        difference=(only_candidate - only_incumbent) / count,
        ci95_low=float(low),
        ci95_high=float(high),
        lowest=agresti_min(only_candidate, only_incumbent, count)[0],
        p=mcnemar(only_candidate, only_incumbent),
        faster=_is_faster(candidate.latency, incumbent.latency),
        smaller=candidate.size_bytes <= CLEARLY * incumbent.size_bytes,
        slower=_is_faster(incumbent.latency, candidate.latency),
        larger=incumbent.size_bytes <= CLEARLY * candidate.size_bytes,
    )


def _is_faster(one: Latency, other: Latency) -> bool:
    return one.median <= CLEARLY * other.median and max(one.medians) < min(other.medians)


def decide(candidate: Contender, incumbent: Contender | None, criteria: Criteria) -> Decision:
    """Decides whether a candidate takes the incumbent's place, or a place that nobody has.

    It does if it meets all criteria and is better (McNemar's p below 0.05, the bootstrap's interval above 0), or
    not worse (Agresti and Min's interval nowhere below minus the margin) and faster or smaller, and not the other
    of these at the cost of the one.
    """
    failed = tuple(
        f"{name} {value:{form}}, {bound} {limit:{form}} allowed"
        for name, value, bound, limit, form in (
            ("median latency in ms", candidate.latency.median, "at most", criteria.max_latency_ms, ".3g"),
            ("calibration error", candidate.calibration_error, "at most", criteria.max_calibration_error, ".2%"),
            ("robustness", candidate.robustness, "at least", criteria.min_robustness, ".2%"),
            ("accuracy on photographs", candidate.photos, "at least", criteria.min_photos, ".2%"),
        )
        if limit is not None and value is not None and (value < limit if bound == "at least" else value > limit)
    )
    if incumbent is None:
        reason = (
            "; ".join(failed) or f"the first champion; {candidate.accuracy:.2%} right of {len(candidate.right):,}"
        )
        return Decision(not failed, reason, criteria, candidate, failed=failed)
    found = compare(candidate, incumbent)
    by = (
        f"{100 * found.difference:+.2f} points on {found.num_images:,} images (95 % interval "
        f"{100 * found.ci95_low:+.2f} to {100 * found.ci95_high:+.2f}, Agresti and Min's from "
        f"{100 * found.lowest:+.2f}, McNemar p = {found.p:.2g})"
    )
    better = found.difference > 0 and found.p < SIGNIFICANCE and found.ci95_low > 0
    not_worse = found.lowest >= -criteria.margin
    gains = [word for word, gained in (("faster", found.faster), ("smaller", found.smaller)) if gained]
    costs = [word for word, lost in (("slower", found.slower), ("larger", found.larger)) if lost]
    if better:
        reason = f"better than {incumbent.name}: {by}"
    elif not_worse and gains and costs:
        reason = f"not shown to be better than {incumbent.name}, and {gains[0]} but {costs[0]}: {by}"
    elif not_worse and gains:
        reason = f"{' and '.join(gains)} than {incumbent.name}, and not worse by more than the margin: {by}"
    elif not_worse:
        reason = f"not shown to be better than {incumbent.name}, and neither faster nor smaller: {by}"
    else:
        margin = f"the margin of {100 * criteria.margin:g} points"
        reason = f"not shown to be better than {incumbent.name}, nor to be as good within {margin}: {by}"
    reason = "; ".join((*failed, reason))
    promoted = not failed and (better or (not_worse and bool(gains) and not costs))
    return Decision(promoted, reason, criteria, candidate, incumbent, found, failed)


def overtaken(decision: Decision, overtaker: str) -> Decision:
    """The decision where another version has become champion meanwhile, with which nothing was compared."""
    reason = (
        f"version {overtaker} became champion while this was judged; type the command again ({decision.reason})"
    )
    return replace(decision, promoted=False, reason=reason)


def record(decision: Decision) -> dict[str, Any]:
    """The decision with its evidence, of JSON's types."""
    return {
        "promoted": decision.promoted,
        "reason": decision.reason,
        "criteria": asdict(decision.criteria),
        "comparison": asdict(decision.comparison) if decision.comparison else None,
        **{
            role: {
                "version": each.name,
                "accuracy": each.accuracy,
                "calibration_error": each.calibration_error,
                "robustness": each.robustness,
                "photos": each.photos,
                "latency_ms_median": each.latency.median,
                "size_bytes": each.size_bytes,
            }
            for role, each in (("candidate", decision.candidate), ("incumbent", decision.incumbent))
            if each
        },
    }


def note(decision: Decision, images: str, word: str) -> str:
    """The same for people, in Markdown; `images` says which were answered, `word` what came of it."""
    there = [each for each in (decision.candidate, decision.incumbent) if each]
    figures: tuple[tuple[str, Callable[[Contender], str]], ...] = (
        ("accuracy", lambda each: f"{each.accuracy:.2%}"),
        ("calibration error", lambda each: f"{each.calibration_error:.2%}"),
        ("robustness", lambda each: markdown.number(each.robustness, ".2%", none="not asked for")),
        ("photographs", lambda each: markdown.number(each.photos, ".2%", none="not asked for")),
        ("one image, median", lambda each: f"{each.latency.median:.3g} ms"),
        ("size", lambda each: f"{each.size_bytes / 2**20:.2f} MiB"),
    )
    rows = [(name, *(show(each) for each in there)) for name, show in figures]
    return "\n".join(
        [
            f"**{word.capitalize()}**: {decision.reason}.",
            "",
            *markdown.table(("", *(each.name for each in there)), rows),
            "",
            images,
        ]
    )
