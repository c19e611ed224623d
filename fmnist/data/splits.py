"""A dataset cut in three: training, validation and test split, and the manifest that says how.

Splits are kept in the cache, under a name that says what they were made of; what has been prepared is not
prepared again.
"""

import hashlib
import json
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import cache
from fmnist.data.idx import Arrays
from fmnist.errors import FmnistError
from fmnist.settings import SPLITS, Validation

FORMAT = 1  # of what is kept; raise it when that changes


@dataclass(frozen=True)
class Split:
    """Images uint8 `(batch, 28, 28)`, 0-255, and their labels uint8 `(batch,)`, 0-9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """The three splits of a dataset, and the manifest that says how they came about."""

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    manifest: dict[str, Any]

    def without_test(self) -> "Splits":
        """The same with an empty test split, for what must not see it."""
        return replace(self, test=Split(self.test.images[:0], self.test.labels[:0]))


def cut(
    arrays: Arrays, validation: Validation, seed: int, class_names: tuple[str, ...], made: dict[str, Any]
) -> Splits:
    """Cuts the validation split from the training images; `made` says of what, and begins the manifest.

    Raises:
        FmnistError: If no training image would be left.
    """
    images, labels, test_images, test_labels = arrays
    if validation.count >= len(labels):
        raise FmnistError(
            f"validation: expected fewer than the {len(labels)} training images, received {validation.count}; "
            f"type for example -P validation=stratified:{max(len(labels) // 5, 1)}"
        )
    chosen = np.arange(len(labels)) >= len(labels) - validation.count
    if validation.stratified:
        chosen = _stratified(labels, validation.count, seed)
    parts = {
        "train": Split(images[~chosen], labels[~chosen]),
        "validation": Split(images[chosen], labels[chosen]),
        "test": Split(test_images, test_labels),
    }
    rows = {name: {image.tobytes() for image in split.images} for name, split in parts.items()}
    manifest = made | {
        "digest": _digest(parts),
        "counts": {name: len(split) for name, split in parts.items()},
        "class_balance": {
            name: np.bincount(split.labels, minlength=len(class_names)).tolist() for name, split in parts.items()
        },
        "mean": float(parts["train"].images.mean()),
        "std": float(parts["train"].images.std()),
        "duplicates": {
            f"{one}_{other}": len(rows[one] & rows[other])
            for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"))
        },
    }
    return Splits(parts["train"], parts["validation"], parts["test"], class_names, manifest)


def _stratified(labels: NDArray[np.uint8], num_validation: int, seed: int) -> NDArray[np.bool_]:
    """A mask of `num_validation` images, of each class as large a share as of all."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    # Every k-th image of the list sorted by class: shares are exact to one image.
    picks = np.arange(num_validation) * len(labels) // num_validation
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[picks]] = True
    return chosen


def _digest(parts: dict[str, Split]) -> str:
    """A hash over every byte of every split; 32 characters, as MLflow takes at most 36."""
    hasher = hashlib.sha256()
    for name in SPLITS:
        hasher.update(parts[name].images.tobytes())
        hasher.update(parts[name].labels.tobytes())
    return hasher.hexdigest()[:32]


def read_prepared(path: Path, class_names: tuple[str, ...]) -> Splits | None:
    """The splits that lie at `path`, or None if there are none or they were harmed.

    The names of the classes are those that were kept with them, if any were.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        with np.load(path / "splits.npz") as arrays:
            parts = {name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in SPLITS}
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None
    if _digest(parts) != manifest["digest"]:
        return None
    class_names = tuple(manifest.get("class_names", class_names))
    return Splits(parts["train"], parts["validation"], parts["test"], class_names, manifest)


def write_prepared(path: Path, splits: Splits) -> None:
    """Puts the splits at `path` in one step, so that nobody ever reads half of them.

    Raises:
        FmnistError: If the cache can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
    except OSError as error:
        raise cache.unwritable(error) from None
    try:
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        images = {f"{name}_images": split.images for name, split in parts.items()}
        labels = {f"{name}_labels": split.labels for name, split in parts.items()}
        np.savez(new / "splits.npz", **images, **labels)  # type: ignore[arg-type]  # numpy's stub takes them for allow_pickle
        (new / "manifest.json").write_text(json.dumps(splits.manifest, indent=1))
        shutil.rmtree(path, ignore_errors=True)  # what was harmed
        try:
            new.rename(path)
        except OSError:
            if not path.is_dir():  # else another process was first
                raise
    except OSError as error:
        raise cache.unwritable(error) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
