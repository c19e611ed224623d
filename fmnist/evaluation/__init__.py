"""What a model's probabilities are worth: figures from probabilities and labels, in NumPy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fmnist.evaluation.calibration import reliability


@dataclass(frozen=True)
class Evaluation:
    """Figures over one split. Arrays by class are `(classes,)`; `confusion` is (true, predicted)."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    macro_f1: float
    calibration_error: float
    """Expected calibration error, of `fmnist.evaluation.calibration`."""
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]
    confusion: NDArray[np.int64]


def evaluate(probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> Evaluation:
    """Compares probabilities `(batch, classes)` with labels `(batch,)`."""
    num_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    confusion = np.bincount(labels.astype(np.int64) * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)
    hits = np.diagonal(confusion)
    # A class that is never predicted, or never there, scores 0.
    precision = hits / np.maximum(confusion.sum(axis=0), 1)
    recall = hits / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * hits / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1), 1)
    return Evaluation(
        loss=float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean()),
        accuracy=float((predicted == labels).mean()),
        macro_f1=float(f1.mean()),
        calibration_error=reliability(probabilities, labels).error,
        precision=precision,
        recall=recall,
        f1=f1,
        support=confusion.sum(axis=1),
        confusion=confusion,
    )
