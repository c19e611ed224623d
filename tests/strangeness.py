"""Prints how well several measures tell what a model was trained on from what it wasn't, for docs/predict.md.

    python tests/strangeness.py models:/fashion-mnist/1 PHOTOS STRANGE

PHOTOS and STRANGE are folders of photographs: of garments that the model knows, and of others. The model must be
one of this project, trained on Fashion-MNIST. Every measure is set on the validation split: 95 % isn't strange.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from fmnist import markdown, prediction
from fmnist.evaluation import strangeness
from fmnist.tracking import models, runs, versions

Images = NDArray[np.uint8]
Scores = NDArray[np.float64]
NUM_MADE, NUM_TRAIN, NUM_NEIGHBOURS = 300, 20_000, 10
NOISE, BLOBS, DIGITS, WORDS = "noise", "blurred noise", "digits", "words"


def made() -> dict[str, Images]:
    """Images that no garment is on: noise, blurred noise, drawn digits and words."""
    rng = np.random.default_rng(0)
    blurred = [gaussian_filter(rng.normal(size=(28, 28)), pixels) for pixels in rng.uniform(1, 4, NUM_MADE)]

    def texts(words: list[str], size: int) -> Images:
        drawn = []
        for word in words:
            large = Image.new("L", (84, 84))
            font = ImageFont.load_default(3 * size * rng.uniform(0.85, 1.1))
            width = int(rng.integers(0, 4))
            ImageDraw.Draw(large).text((42, 42), word, 255, font, "mm", stroke_width=width)
            small = large.rotate(rng.uniform(-15, 15)).resize((28, 28), Image.Resampling.BOX)
            drawn.append(np.asarray(small))
        return np.array(drawn)

    return {
        NOISE: rng.integers(0, 256, (NUM_MADE, 28, 28)).astype(np.uint8),
        BLOBS: np.array([255 * (each - each.min()) / np.ptp(each) for each in blurred]).astype(np.uint8),
        DIGITS: texts([str(number % 10) for number in range(NUM_MADE)], 24),
        WORDS: texts(["".join(map(chr, rng.integers(97, 123, 4))) for _ in range(NUM_MADE)], 10),
    }


def photographs(folder: str) -> Images:
    found = [
        each for source in prediction.sources(folder) for each in prediction.read(source, (), raw=False, test=None)
    ]
    return np.array([each.image for each in found if isinstance(each, prediction.Seen)])


def auroc(known: Scores, strange: Scores) -> float:
    """How often a strange image is the stranger one of two."""
    less = np.searchsorted(np.sort(known), strange)
    return float((less + np.searchsorted(np.sort(known), strange, side="right")).mean() / 2 / len(known))


def mahalanobis(train: Scores, labels: NDArray[np.uint8]) -> Callable[[Scores], Scores]:
    """The distance to the nearest class, with the covariance that all classes share."""
    means = np.array([train[labels == label].mean(axis=0) for label in range(10)])
    left = train - means[labels]
    covariance = left.T @ left / len(left)
    inverse = np.linalg.pinv(covariance + 1e-4 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    return lambda rows: np.min([((rows - mean) @ inverse * (rows - mean)).sum(axis=1) for mean in means], axis=0)


def neighbours(train: Scores) -> Callable[[Scores], Scores]:
    """The mean squared distance to the ten nearest training images."""
    squares = (train**2).sum(axis=1)

    def distance(rows: Scores) -> Scores:
        found = []
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500]
            squared = (part**2).sum(axis=1, keepdims=True) - 2 * part @ train.T + squares
            found.append(np.partition(squared, NUM_NEIGHBOURS, axis=1)[:, :NUM_NEIGHBOURS].mean(axis=1))
        return np.concatenate(found)

    return distance


def unit(rows: Scores) -> Scores:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_uri")
    parser.add_argument("photos")
    parser.add_argument("strange")
    arguments = parser.parse_args()
    runs.open_store()
    splits = versions.own_splits(versions.find(arguments.model_uri), "")
    import keras

    model = models.load_model(arguments.model_uri)
    inside = keras.Model(model.inputs, [model.get_layer("logits").input, model.get_layer("logits").output])

    def computed(images: Images) -> tuple[Scores, Scores]:
        features, logits = inside.predict({"pixels": images.astype(np.float32)}, batch_size=1000, verbose=0)
        return features.astype(np.float64), logits.astype(np.float64)

    train, labels = splits.train.images[:NUM_TRAIN], splits.train.labels[:NUM_TRAIN]
    pixels = train.reshape(len(train), -1) / 255
    mean = pixels.mean(axis=0)
    directions = np.linalg.eigh((pixels - mean).T @ (pixels - mean))[1][:, ::-1].T

    def drawn(images: Images, count: int) -> Scores:
        return np.asarray((images.reshape(len(images), -1) / 255 - mean) @ directions[:count].T)

    features = computed(train)[0]
    by_class, by_pixels = mahalanobis(features, labels), mahalanobis(drawn(train, 200), labels)
    near, near_pixels = neighbours(unit(features)), neighbours(drawn(train, 64))
    kept = strangeness.learn(train, splits.validation.images)
    measures: dict[str, Callable[[Images], Scores]] = {
        "1 - greatest probability": lambda images: 1 - np.exp(_log_softmax(computed(images)[1])).max(axis=1),
        "energy of the logits": lambda images: -_log_sum(computed(images)[1]),
        "last features: Mahalanobis": lambda images: by_class(computed(images)[0]),
        "last features: ten nearest": lambda images: near(unit(computed(images)[0])),
        "pixels: Mahalanobis, 200 directions": lambda images: by_pixels(drawn(images, 200)),
        "pixels: ten nearest, 64 directions": lambda images: near_pixels(drawn(images, 64)),
        "**pixels: what 64 directions leave**": lambda images: kept(images).astype(np.float64),
    }
    others = made() | {"strange photographs": photographs(arguments.strange)}
    known = {"test": splits.test.images, "photographs": photographs(arguments.photos)}
    rows = []
    for name, measure in measures.items():
        held_out = measure(splits.validation.images)
        limit = np.quantile(held_out, strangeness.HELD_OUT_SHARE)
        scores = {place: measure(images) for place, images in (known | others).items()}
        shares = [f"{(scores[place] > limit).mean():.0%}" for place in (*known, *others)]
        rows.append(
            (
                name,
                *(f"{auroc(held_out, scores[place]):.3f}" for place in others),
                f"{auroc(scores['photographs'], scores['strange photographs']):.3f}",
                *shares,
            )
        )
    heads = ["measure", *(f"{name}, AUROC" for name in others), "strange photographs against photographs, AUROC"]
    print("\n".join(markdown.table([*heads, *(f"{name} called strange" for name in (*known, *others))], rows)))
    print({name: len(images) for name, images in (known | others).items()})


def _log_sum(logits: Scores) -> Scores:
    most = logits.max(axis=1)
    return np.asarray(most + np.log(np.exp(logits - most[:, None]).sum(axis=1)))


def _log_softmax(logits: Scores) -> Scores:
    return np.asarray(logits - _log_sum(logits)[:, None])


if __name__ == "__main__":
    main()
