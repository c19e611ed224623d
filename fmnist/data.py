"""Named datasets and their splits: what there is to train on, checked, and cut in three.

To add a dataset of IDX files, add an entry to `_OFFICIAL`; for any other, write a function as `_synthetic`
and register it with `dataset`. All commands and tests then see it.

Splits are kept in the cache, under a name that says what they were made of, beside a manifest that says
how; what has been prepared is not prepared again.
"""

import gzip
import hashlib
import json
import os
import shutil
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fmnist import synthetic
from fmnist.download import UnavailableError, cache_dir, fetch, sha256, unwritable_cache
from fmnist.errors import FmnistError
from fmnist.registry import DATASETS
from fmnist.settings import parse_validation

NUM_CLASSES = 10
SPLITS = ("train", "validation", "test")
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
_FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
_FORMAT = 1  # of the prepared splits; raise it when what is kept changes
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


class SyntheticFallback(UserWarning):
    """`dataset=auto` could not have the real images and took made-up ones."""


class DuplicatesWarning(UserWarning):
    """The same image stands in two splits: what is measured on one was seen in the other."""


@dataclass(frozen=True)
class Source:
    """Where a dataset's bytes come from."""

    hashes: dict[str, str]
    """What names the bytes: SHA-256 by file, or a version."""
    read: Callable[[], Arrays]
    """Gives train images, train labels, test images, test labels."""


@dataclass(frozen=True)
class Dataset:
    """A named dataset."""

    class_names: tuple[str, ...]
    find: Callable[[Path | None], Source]
    """Finds the source, in the folder given if one is."""


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


def load(dataset: str, *, data_dir: str, validation: str, seed: int) -> Splits:
    """The splits of a dataset, prepared now or earlier.

    Args:
        dataset: A name of the registry.
        data_dir: A folder with the four IDX files; empty for FMNIST_DATA_DIR or the download cache.
        validation: `N`, the last N training images; `stratified:N`, N drawn evenly from all classes.
        seed: Of a stratified split; no other draw depends on it.

    Raises:
        FmnistError: If the data can't be had, isn't what it should be, or is too small to split.
    """
    stratified, num_validation = parse_validation(validation)
    folder = data_dir or os.environ.get("FMNIST_DATA_DIR", "")
    given = Path(folder).expanduser() if folder and dataset != "synthetic" else None
    if given and not given.is_dir():
        raise FmnistError(f"data_dir: expected a folder with the four IDX files; {given} is none")
    fallback = {}
    if dataset == "auto":
        try:
            dataset, source = "fashion-mnist", DATASETS["fashion-mnist"].find(given)
        except UnavailableError as error:
            dataset, source = "synthetic", DATASETS["synthetic"].find(None)
            fallback = {"fallback": f"synthetic instead of fashion-mnist: {error}"}
            warnings.warn(f"TRAINING ON MADE-UP IMAGES, {fallback['fallback']}", SyntheticFallback, stacklevel=2)
    else:
        source = DATASETS[dataset].find(given)
    made = {
        "dataset": dataset,
        "format": _FORMAT,
        "source": source.hashes,
        "split": f"{num_validation} stratified" if stratified else f"last {num_validation}",
        "seed": seed if stratified else None,
    }
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / "prepared" / f"{dataset}-{key}"
    names = DATASETS[dataset].class_names
    splits = _read_prepared(path, names)
    if splits is None:
        splits = _split(source.read(), stratified, num_validation, seed, names, made)
        try:
            _write_prepared(path, splits)
        except OSError as error:
            raise unwritable_cache(error) from None
    for pair, count in splits.manifest["duplicates"].items():
        if count:
            text = f"{count} images stand both in {pair.replace('_', ' and ')}"
            warnings.warn(text, DuplicatesWarning, stacklevel=2)
    return Splits(splits.train, splits.validation, splits.test, names, splits.manifest | fallback)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The bytes of an IDX file, gzipped or not, as an array of its own shape.

    Source: http://yann.lecun.com/exdb/mnist/, "The IDX file format".

    Raises:
        FmnistError: If it isn't an IDX file of unsigned bytes, or is shorter or longer than it says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise FmnistError(f"{path}: expected a gzipped IDX file, but it can't be unpacked ({error})") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 3:
        raise FmnistError(
            f"{path}: expected an IDX file of unsigned bytes, which begins with 00 00 08; "
            f"received {content[:4].hex(' ') or 'nothing'}"
        )
    num_dimensions = content[3]
    header = 4 + 4 * num_dimensions
    if len(content) < header:
        raise FmnistError(f"{path}: truncated: {len(content)} bytes end inside the header of {header}")
    shape = struct.unpack_from(f">{num_dimensions}I", content, 4)
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        wrong = "truncated" if len(content) < expected else "too long"
        raise FmnistError(f"{path}: {wrong}: shape {shape} needs {expected} bytes, received {len(content)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_files(paths: dict[str, Path]) -> Arrays:
    """Reads four IDX files, by the standard names, and checks that they make a dataset."""
    arrays = {name: read_idx(path) for name, path in paths.items()}
    for images_name, labels_name in ((TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TEST_LABELS)):
        images, labels = arrays[images_name], arrays[labels_name]
        if images.ndim != 3 or images.shape[1:] != (28, 28):
            raise FmnistError(f"{paths[images_name]}: expected images of 28x28, received shape {images.shape}")
        if labels.ndim != 1 or len(images) != len(labels):
            raise FmnistError(
                f"{paths[labels_name]}: expected one label for each of {len(images)} images, "
                f"received shape {labels.shape}"
            )
        if len(labels) == 0:
            raise FmnistError(f"{paths[labels_name]}: expected at least one image, received none")
        if labels.max() >= NUM_CLASSES:
            raise FmnistError(f"{paths[labels_name]}: expected labels 0-9, received {labels.max()}")
    return cast(Arrays, tuple(arrays[name] for name in _FILES))


def _split(
    arrays: Arrays,
    stratified: bool,
    num_validation: int,
    seed: int,
    class_names: tuple[str, ...],
    made: dict[str, Any],
) -> Splits:
    images, labels, test_images, test_labels = arrays
    if num_validation >= len(labels):
        raise FmnistError(
            f"validation: expected fewer than the {len(labels)} training images, received {num_validation}"
        )
    chosen = np.arange(len(labels)) >= len(labels) - num_validation
    if stratified:
        chosen = _stratified(labels, num_validation, seed)
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
            name: np.bincount(split.labels, minlength=NUM_CLASSES).tolist() for name, split in parts.items()
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


def _read_prepared(path: Path, class_names: tuple[str, ...]) -> Splits | None:
    """The splits that lie at `path`, or None if there are none or they were harmed."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        with np.load(path / "splits.npz") as arrays:
            parts = {name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in SPLITS}
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
        return None
    if _digest(parts) != manifest["digest"]:
        return None
    return Splits(parts["train"], parts["validation"], parts["test"], class_names, manifest)


def _write_prepared(path: Path, splits: Splits) -> None:
    """Puts the splits at `path` in one step, so that nobody ever reads half of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=path.parent, prefix=".new-"))
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
    finally:
        shutil.rmtree(new, ignore_errors=True)


def dataset(
    name: str, *, class_names: tuple[str, ...]
) -> Callable[[Callable[[Path | None], Source]], Callable[[Path | None], Source]]:
    """Registers a function that finds a dataset's source."""

    def register(find: Callable[[Path | None], Source]) -> Callable[[Path | None], Source]:
        DATASETS.add(name, Dataset(class_names, find))
        return find

    return register


@dataclass(frozen=True)
class _Official:
    """A published dataset: SHA-256 of its four .gz files in the order of `_FILES`, and where they lie."""

    hashes: tuple[str, str, str, str]
    mirrors: tuple[str, ...]
    class_names: tuple[str, ...]


_DIGITS = tuple("0123456789")
_GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_OFFICIAL = {
    # Source: Xiao, Rasul, Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist
    "fashion-mnist": _Official(
        hashes=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        mirrors=(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",  # plain HTTP: the hashes guard it
        ),
        class_names=_GARMENTS,
    ),
    # Source: LeCun, Cortes, Burges; hashes as published by Keras, Theano and TensorFlow users alike
    "mnist": _Official(
        hashes=(
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        mirrors=(
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            "https://ossci-datasets.s3.amazonaws.com/mnist",
        ),
        class_names=_DIGITS,
    ),
    # Source: Clanuwat et al. 2018, http://codh.rois.ac.jp/kmnist; hashes as in TensorFlow Datasets
    "kmnist": _Official(
        hashes=(
            "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        ),
        mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist",),
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
}


def _find_official(name: str, folder: Path | None) -> Source:
    official = _OFFICIAL[name]
    hashes = {f"{file}.gz": expected for file, expected in zip(_FILES, official.hashes, strict=True)}
    if folder is None:
        folder = cache_dir() / "downloads" / name
        fetch(folder, hashes, official.mirrors)
    for file, expected in hashes.items():
        if not (folder / file).is_file() or sha256(folder / file) != expected:
            raise FmnistError(
                f"{folder / file} is missing or isn't the official {name} file (SHA-256 {expected[:12]}…). "
                "To use a folder of other IDX files as it is, type -P dataset=folder"
            )
    return Source(hashes, partial(_read_files, {file: folder / f"{file}.gz" for file in _FILES}))


for _name, _official in _OFFICIAL.items():
    dataset(_name, class_names=_official.class_names)(partial(_find_official, _name))


@dataset("synthetic", class_names=_GARMENTS)
def _synthetic(folder: Path | None) -> Source:
    return Source({"synthetic": str(synthetic.VERSION)}, synthetic.draw)


@dataset("folder", class_names=_DIGITS)
def _folder(folder: Path | None) -> Source:
    if folder is None:
        raise FmnistError("dataset=folder: expected the folder of the four IDX files; type -P data_dir=FOLDER")
    paths = {}
    for file in _FILES:
        found = [path for path in (folder / f"{file}.gz", folder / file) if path.is_file()]
        if not found:
            raise FmnistError(f"{folder}: expected the file {file}.gz or {file}, found neither")
        paths[file] = found[0]
    return Source({path.name: sha256(path) for path in paths.values()}, partial(_read_files, paths))


@dataset("auto", class_names=_GARMENTS)
def _auto(folder: Path | None) -> Source:
    raise ValueError("auto stands for another dataset; load() resolves it")
