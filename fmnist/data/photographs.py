"""A folder of labelled photographs as a dataset: a class is a folder in it, named after what is on its files.

About a third of each class is for testing: those whose SHA-256 of the seed and their content is below a third of
its range. So neither names nor copies of a file change anything, and a photograph keeps its side when others come.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fmnist import cache, machine, photos
from fmnist.data.idx import Arrays
from fmnist.errors import FmnistError

MIN_FILES = 3
MAX_CLASSES = 256
THIRD = f"{2**256 // 3:064x}"


@dataclass(frozen=True)
class Photographs:
    """Files by class, none twice, in the order of the hash that draws them."""

    test: tuple[tuple[Path, int], ...]
    train: tuple[tuple[Path, int], ...]
    class_names: tuple[str, ...]
    hashes: Mapping[str, str]
    """What names the images that come of them: the files, the draw, and the code that cuts garments out."""

    def read(self) -> Arrays:
        """Train images, train labels, test images, test labels.

        Raises:
            FmnistError: If a file can't be read.
        """
        files = [*self.train, *self.test]
        with ThreadPoolExecutor(machine.num_threads()) as pool:
            prepared = pool.map(lambda file: photos.prepare(photos.read(file[0])).image, files)
            images = np.array([*tqdm(prepared, "photographs", len(files), unit="photo", disable=None)])
        labels = np.array([label for _, label in files], np.uint8)
        count = len(self.train)
        return images[:count], labels[:count], images[count:], labels[count:]


def find(folder: Path, seed: int) -> Photographs | None:
    """The photographs in a folder's folders; None if it has no folders.

    Raises:
        FmnistError: If there are too few for a dataset.
    """
    folders = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not folders:
        return None
    test: list[tuple[str, Path, int]] = []
    train: list[tuple[str, Path, int]] = []
    contents: dict[str, str] = {}
    for label, each in enumerate(folders):
        found: dict[str, Path] = {}
        for file in sorted(each.rglob("*")):
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(each).parts):
                content = cache.sha256(file)
                if contents.setdefault(content, each.name) != each.name:
                    raise FmnistError(f"{file}: stands in {contents[content]} too; leave it in one of them")
                found[content] = file
        if len(found) < MIN_FILES:
            raise FmnistError(
                f"{each}: expected at least {MIN_FILES} photographs of a class, each once, received {len(found)}; "
                "add some, or move the folder away"
            )
        drawn = sorted((_draw(content, seed), file, label) for content, file in found.items())
        below = sum(hashed < THIRD for hashed, _, _ in drawn)
        count = min(max(below, 1), len(drawn) - 1)  # there is one to test, and one to learn from
        test += drawn[:count]
        train += drawn[count:]
    if not 2 <= len(folders) <= MAX_CLASSES:
        raise FmnistError(
            f"{folder}: expected from 2 to {MAX_CLASSES} folders, a class each; found {len(folders)}"
        )
    return Photographs(
        test=tuple((file, label) for _, file, label in sorted(test)),
        train=tuple((file, label) for _, file, label in sorted(train)),
        class_names=tuple(each.name for each in folders),
        hashes={
            "photographs": cache.digest(contents),
            "tested below a third, drawn by": str(seed),
            "cut out by": photos.cutter(),
            "cut out by code": machine.code_digest(("photos",)),
        },
    )


def _draw(content: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {content}".encode()).hexdigest()
