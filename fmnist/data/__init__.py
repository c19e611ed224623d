"""The door to the data: the splits of a named dataset, prepared now or earlier."""

import json
import os
import warnings
from pathlib import Path

from fmnist import cache
from fmnist.data.datasets import Folder
from fmnist.data.download import UnavailableError
from fmnist.data.splits import FORMAT, Split, Splits, cut, read_prepared, write_prepared
from fmnist.errors import FmnistError
from fmnist.registry import DATASETS
from fmnist.settings import SPLITS, Validation

__all__ = ["SPLITS", "DuplicatesWarning", "Split", "Splits", "SyntheticFallback", "load", "prepared"]


class SyntheticFallback(UserWarning):
    """`dataset=auto` could not have the real images and took made-up ones."""


class DuplicatesWarning(UserWarning):
    """The same image stands in two splits: what is measured on one was seen in the other."""


def load(dataset: str, *, data_dir: str, validation: Validation, seed: int) -> Splits:
    """The splits of a dataset.

    Args:
        dataset: A name of the registry.
        data_dir: A folder with the four IDX files, or with labelled photographs; empty for FMNIST_DATA_DIR or the
            download cache.
        validation: Which training images are the validation split.
        seed: Of a stratified split that names none, and of the photographs that are for testing.

    Raises:
        FmnistError: If the data can't be had, isn't what it should be, or is too small to split.
    """
    path = Path(data_dir or os.environ.get("FMNIST_DATA_DIR", "")).expanduser()
    drawn_by = seed if validation.seed is None else validation.seed
    used = path.parts and dataset != "synthetic"
    folder = Folder(path, required=bool(data_dir), seed=drawn_by) if used else None
    if folder and not path.is_dir():
        name = "data_dir" if data_dir else "FMNIST_DATA_DIR"
        raise FmnistError(f"{name}: expected a folder with the four IDX files; {path} is none")
    fallback = {}
    if dataset == "auto":
        try:
            dataset, source = "fashion-mnist", DATASETS["fashion-mnist"].find(folder)
        except UnavailableError as error:
            dataset, source = "synthetic", DATASETS["synthetic"].find(None)
            fallback = {"fallback": f"synthetic instead of fashion-mnist: {error}"}
            warnings.warn(f"TRAINING ON MADE-UP IMAGES, {fallback['fallback']}", SyntheticFallback, stacklevel=2)
    else:
        source = DATASETS[dataset].find(folder)
    made = {
        "dataset": dataset,
        "format": FORMAT,
        "source": source.hashes,
        "split": f"{validation.count} stratified" if validation.stratified else f"last {validation.count}",
        "seed": drawn_by if validation.stratified else None,
        **({"class_names": source.class_names} if source.class_names else {}),
    }
    prepared = cache.folder() / "prepared" / f"{dataset}-{cache.digest(made)}"
    names = source.class_names or DATASETS[dataset].class_names
    splits = read_prepared(prepared, names)
    if splits is None:
        splits = cut(source.read(), validation, drawn_by, names, made)
        write_prepared(prepared, splits)
    for pair, count in splits.manifest["duplicates"].items():
        if count:
            text = f"{count} images stand both in {pair.replace('_', ' and ')}"
            warnings.warn(text, DuplicatesWarning, stacklevel=2)
    return Splits(splits.train, splits.validation, splits.test, names, splits.manifest | fallback)


def prepared(digest: str) -> Splits | None:
    """The splits of that digest, if they were prepared here before; nothing is fetched."""
    for file in (cache.folder() / "prepared").glob("*/manifest.json"):
        if f'"{digest}"' in file.read_text():
            name = json.loads(file.read_text())["dataset"]
            return read_prepared(file.parent, DATASETS[name].class_names)
    return None
