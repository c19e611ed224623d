"""The named datasets: what each one is, and where its bytes come from.

To add a dataset of IDX files, add an entry to `_OFFICIAL`; for any other, write a function as `_synthetic`
and register it with `dataset`. All commands and tests then see it.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fmnist import cache
from fmnist.data import idx, photographs, synthetic
from fmnist.data.download import fetch
from fmnist.errors import FmnistError
from fmnist.registry import DATASETS


@dataclass(frozen=True)
class Source:
    """Where a dataset's bytes come from."""

    hashes: dict[str, str]
    """What names the bytes: SHA-256 by file, or a version."""
    read: Callable[[], idx.Arrays]
    """Gives train images, train labels, test images, test labels."""
    class_names: tuple[str, ...] | None = None
    """Where the dataset's name doesn't say them."""


@dataclass(frozen=True)
class Folder:
    """A folder in which a user keeps data."""

    path: Path
    required: bool
    """Named for this dataset, which must be there; else it may be another's (FMNIST_DATA_DIR)."""
    seed: int = 0
    """Draws which photographs are for testing."""


@dataclass(frozen=True)
class Dataset:
    """A named dataset."""

    class_names: tuple[str, ...]
    find: "Find"
    """Finds the source, in the folder given if one is."""


Find = Callable[[Folder | None], Source]
WHOLE, MISSING, HARMED = "whole", "missing", "harmed, or another dataset's"


class DataDirWarning(UserWarning):
    """FMNIST_DATA_DIR doesn't hold the dataset that was asked for."""


def dataset(name: str, *, class_names: tuple[str, ...]) -> Callable[[Find], Find]:
    """Registers a function that finds a dataset's source."""

    def register(find: Find) -> Find:
        DATASETS.add(name, Dataset(class_names, find))
        return find

    return register


@dataclass(frozen=True)
class _Official:
    """A published dataset: SHA-256 of its four .gz files in the order of `idx.FILES`, and where they lie."""

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


def official(name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The SHA-256 of each of a published dataset's files, and the mirrors that have them."""
    found = _OFFICIAL[name]
    return {f"{file}.gz": each for file, each in zip(idx.FILES, found.hashes, strict=True)}, found.mirrors


def states(name: str, folder: Path) -> dict[str, str]:
    """Of each of a published dataset's files whether a folder has it: `WHOLE`, `MISSING` or `HARMED`."""
    hashes, _ = official(name)
    return {
        file: WHOLE if _is_official(folder / file, expected) else HARMED if (folder / file).is_file() else MISSING
        for file, expected in hashes.items()
    }


def _find_official(name: str, folder: Folder | None) -> Source:
    hashes, mirrors = official(name)
    if folder:
        for path in (folder.path, folder.path / name):
            wrong = [file for file in hashes if not _is_official(path / file, hashes[file])]
            if not wrong:
                return _official_source(path, hashes)
            if folder.required and len(wrong) < len(hashes):
                break  # the message is of this folder
        told = f"{path / wrong[0]} is missing or isn't the official {name} file"
        if folder.required:
            raise FmnistError(
                f"data_dir: {told} (SHA-256 {hashes[wrong[0]][:12]}…). To use a folder of other IDX files as it "
                "is, type -P dataset=folder"
            )
        text = f"FMNIST_DATA_DIR is passed over for {name}: {told}; going on to the cache and the mirrors"
        warnings.warn(text, DataDirWarning, stacklevel=2)
    downloads = cache.folder() / "downloads" / name
    fetch(downloads, hashes, mirrors)
    return _official_source(downloads, hashes)


def _is_official(path: Path, expected: str) -> bool:
    return path.is_file() and cache.sha256(path) == expected


def _official_source(folder: Path, hashes: dict[str, str]) -> Source:
    return Source(hashes, partial(idx.read_four, {file: folder / f"{file}.gz" for file in idx.FILES}))


for _name, _published in _OFFICIAL.items():
    dataset(_name, class_names=_published.class_names)(partial(_find_official, _name))


@dataset("synthetic", class_names=_GARMENTS)
def _synthetic(folder: Folder | None) -> Source:
    return Source({"synthetic": str(synthetic.VERSION)}, synthetic.draw)


@dataset("folder", class_names=_DIGITS)
def _folder(folder: Folder | None) -> Source:
    if folder is None:
        raise FmnistError(
            "dataset=folder: expected a folder with the four IDX files, or with a folder of photographs for each "
            "class; type -P data_dir=FOLDER"
        )
    paths = {}
    for file in idx.FILES:
        found = [path for path in (folder.path / f"{file}.gz", folder.path / file) if path.is_file()]
        if found:
            paths[file] = found[0]
    if not paths and (own := photographs.find(folder.path, folder.seed)):
        return Source(dict(own.hashes), own.read, own.class_names)
    for file in idx.FILES:
        if file not in paths:
            raise FmnistError(
                f"{folder.path}: expected the file {file}.gz or {file}, found neither; nor folders of photographs"
            )
    return Source({path.name: cache.sha256(path) for path in paths.values()}, partial(idx.read_four, paths))


@dataset("auto", class_names=_GARMENTS)
def _auto(folder: Folder | None) -> Source:
    raise ValueError("auto stands for another dataset; load() resolves it")
