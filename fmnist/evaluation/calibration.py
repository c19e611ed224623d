"""How far a model's confidence can be believed: in bins, with a temperature, and without doubtful images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Equal bins of confidence, `(bins,)` each; an empty bin's means are 0."""

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean gap between confidence and accuracy, weighted by images.

        Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599
        """
        return float((self.count * np.abs(self.confidence - self.accuracy)).sum() / self.count.sum())


def reliability(probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> Reliability:
    """Compares confidence with accuracy, of probabilities `(batch, classes)` and labels `(batch,)`."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    count = np.bincount(bins, minlength=NUM_BINS)
    sums = (np.bincount(bins, weights=values, minlength=NUM_BINS) for values in (confidence, right))
    return Reliability(count, *(each / np.maximum(count, 1) for each in sums))


def temperature(probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> float:
    """What the logits must be divided by for the least cross-entropy; above 1 the model is too sure.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    from scipy.optimize import minimize_scalar

    logits = _logits(probabilities)
    own = logits[np.arange(len(labels)), labels]

    def loss(log_temperature: float) -> float:
        divided = logits / np.exp(log_temperature)
        return float((np.log(np.exp(divided).sum(axis=1)) - own / np.exp(log_temperature)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def cooled(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """The probabilities with their logits divided by a temperature."""
    scaled = np.exp(_logits(probabilities) / temperature)
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), dtype=np.float32)


def _logits(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits, the greatest of each image 0."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
    return np.asarray(logits - logits.max(axis=1, keepdims=True))


@dataclass(frozen=True)
class Selective:
    """What is right where a model answers only its surest images; `(images,)` each, surest first."""

    coverage: NDArray[np.float64]
    """The share that is answered."""
    accuracy: NDArray[np.float64]
    """Of those that are answered."""

    @property
    def area(self) -> float:
        """The mean accuracy over all coverages: high where mistakes are the doubtful ones."""
        return float(self.accuracy.mean())

    def at(self, coverage: float) -> float:
        """The accuracy where so large a share is answered."""
        return float(self.accuracy[max(round(coverage * len(self.accuracy)), 1) - 1])


def selective(probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> Selective:
    """Accuracy against coverage, of probabilities `(batch, classes)` and labels `(batch,)`.

    Source: Geifman, El-Yaniv 2017, https://arxiv.org/abs/1705.08500
    """
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    right = (probabilities.argmax(axis=1) == labels)[order]
    answered = np.arange(1, len(labels) + 1)
    return Selective(coverage=answered / len(labels), accuracy=np.cumsum(right) / answered)
