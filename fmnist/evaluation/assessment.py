"""All that is found out about a model on one split of a dataset, and how it is put for people."""

from dataclasses import dataclass

import numpy as np

from fmnist import markdown
from fmnist.data import Splits
from fmnist.evaluation import Evaluation, evaluate
from fmnist.evaluation.calibration import (
    Reliability,
    Selective,
    cooled,
    reliability,
    selective,
    temperature,
)
from fmnist.evaluation.corruptions import Predict, Robustness, robustness
from fmnist.evaluation.speed import BATCH_SIZE, Answer, Latency, latencies
from fmnist.statistics import wilson


@dataclass(frozen=True)
class Assessment:
    """What a model is worth on one split."""

    split: str
    num_images: int
    figures: Evaluation
    accuracy_interval: tuple[float, float]
    """95 %, Wilson's."""
    temperature: float
    """Fitted on the validation split."""
    reliability: Reliability
    cooled_reliability: Reliability
    """With the temperature."""
    selective: Selective
    robustness: Robustness
    one_image: Latency
    batch: Latency
    """Of 256 images."""

    @property
    def images_per_second(self) -> float:
        """In batches."""
        return 1000 * BATCH_SIZE / self.batch.median


def assess(predict: Predict, answer: Answer, splits: Splits, split: str) -> Assessment:
    """Answers a split with a model and says what the answers are worth.

    Args:
        predict: Gives probabilities `(batch, classes)` of images `(batch, 28, 28)`.
        answer: What is timed: the model as it is served.
        splits: The dataset.
        split: Which of its splits.
    """
    images, labels = (getattr(getattr(splits, split), name) for name in ("images", "labels"))
    probabilities = predict(images)
    validation = splits.validation
    fitted = temperature(probabilities if split == "validation" else predict(validation.images), validation.labels)
    figures = evaluate(probabilities, labels)
    pixels = np.resize(images, (BATCH_SIZE, *images.shape[1:])).astype(np.float32)  # repeated if too few
    (one_image,), (batch,) = latencies([answer], pixels[:1]), latencies([answer], pixels)
    return Assessment(
        split=split,
        num_images=len(labels),
        figures=figures,
        accuracy_interval=wilson(int(np.trace(figures.confusion)), len(labels)),
        temperature=fitted,
        reliability=reliability(probabilities, labels),
        cooled_reliability=reliability(cooled(probabilities, fitted), labels),
        selective=selective(probabilities, labels),
        robustness=robustness(predict, images, labels),
        one_image=one_image,
        batch=batch,
    )


def metrics(found: Assessment) -> dict[str, float]:
    """The figures by the names under which they are tracked."""
    low, high = found.accuracy_interval
    figures = {
        "accuracy": found.figures.accuracy,
        "accuracy_ci95_low": low,
        "accuracy_ci95_high": high,
        "loss": found.figures.loss,
        "macro_f1": found.figures.macro_f1,
        "calibration_error": found.figures.calibration_error,
        "calibration_error_cooled": found.cooled_reliability.error,
        "selective_area": found.selective.area,
        "selective_accuracy_80": found.selective.at(0.8),
        "robustness": found.robustness.mean,
        **{f"robustness_{kind}": float(np.mean(each)) for kind, each in found.robustness.accuracy.items()},
    }
    return {
        "temperature": found.temperature,
        "served/latency_ms_median": found.one_image.median,
        "served/latency_ms_p95": found.one_image.p95,
        "served/images_per_second": found.images_per_second,
        **{f"{found.split}/{name}": value for name, value in figures.items()},
    }


def note(found: Assessment, model: str, dataset: str) -> str:
    """The same for people, in Markdown."""
    low, high = found.accuracy_interval
    fitted = "the same images" if found.split == "validation" else "the validation split"
    robust = found.robustness
    rows = [
        ("accuracy (95 % interval)", f"**{found.figures.accuracy:.2%}** ({low:.2%} to {high:.2%})"),
        (
            "calibration error",
            f"{found.figures.calibration_error:.2%}; {found.cooled_reliability.error:.2%} with temperature "
            f"{found.temperature:.2f}, fitted on {fitted}",
        ),
        (
            "if it may leave out the doubtful fifth",
            f"{found.selective.at(0.8):.2%} right; mean over all coverages {found.selective.area:.2%}",
        ),
        (
            "robustness",
            f"**{robust.mean:.2%}**: mean accuracy over {len(robust.accuracy)} kinds of harm at five strengths, "
            f"first {robust.num_images:,} images ({robust.clean:.2%} of them unharmed)",
        ),
        (
            "one image, without HTTP",
            f"{found.one_image.median:.2f} ms (median of {found.one_image.n}; 95 % within "
            f"{found.one_image.p95:.2f} ms)",
        ),
        (f"in batches of {BATCH_SIZE}", f"{found.images_per_second:,.0f} images a second"),
    ]
    title = f"**{model}** on the {found.split} split of {dataset}, {found.num_images:,} images."
    return "\n".join([title, "", *markdown.table(("", ""), rows)]) + "\n"
