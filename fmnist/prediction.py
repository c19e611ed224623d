"""A model's answers for photographs and other images: found where a user names them, prepared, asked, judged.

Images come in batches and are dropped when they are answered, so that memory doesn't grow with their number.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import machine, markdown, photos
from fmnist.classes import named
from fmnist.data import Split, idx
from fmnist.errors import FmnistError
from fmnist.evaluation.corruptions import Predict
from fmnist.evaluation.strangeness import Strangeness
from fmnist.images import parse_images
from fmnist.statistics import wilson

SIDE = 28
BATCH = 32
SHOWN_SIDE = 320  # of a photograph that is kept to be shown
NUM_LIKELIEST = 3
STRANGE = "like nothing I was trained on"


@dataclass(frozen=True)
class Source:
    """Where images are: a file, or test images."""

    place: Path | range
    folders: tuple[str, ...] = ()
    """The folders that the file lies in, up to the one that the user named, the nearest first."""

    def __len__(self) -> int:
        """Number of images, as far as it is known before they are read."""
        return len(self.place) if isinstance(self.place, range) else idx.count(self.place) or 1


@dataclass(frozen=True)
class Seen:
    """An image `(28, 28)` as a model sees it."""

    name: str
    image: NDArray[np.uint8]
    folder: str = ""
    """That it lies in, if that names its classes, or was found in a folder that the user named."""
    truths: tuple[int, ...] = ()
    """The classes any of which is right; none if it isn't known."""
    photo: NDArray[np.uint8] | None = None
    """What it was made of, reduced; None for an image that was in the dataset's form."""
    outline: tuple[NDArray[np.int32], ...] = ()
    """Polygons `(points, 2)` of x and y on the reduced photograph."""


@dataclass(frozen=True)
class Skipped:
    """What couldn't be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Answer:
    """What a model says of an image."""

    seen: Seen
    probabilities: NDArray[np.float32]
    """`(classes,)`."""
    strangeness: float | None = None
    """Above 1 the image is like nothing that the model was trained on; None if that isn't known."""

    @property
    def label(self) -> int:
        """The likeliest class."""
        return int(self.probabilities.argmax())

    @property
    def likeliest(self) -> list[int]:
        """The three likeliest classes, the likeliest first."""
        return [int(label) for label in np.argsort(-self.probabilities, kind="stable")[:NUM_LIKELIEST]]

    @property
    def is_strange(self) -> bool:
        """Whether it is farther from the training images than nearly all held-out ones."""
        return self.strangeness is not None and self.strangeness > 1

    @property
    def right(self) -> bool | None:
        """Whether it is what the image shows; None if that isn't known."""
        return self.label in self.seen.truths if self.seen.truths else None


def sources(images: str) -> list[Source]:
    """Where the images are that a text such as `photo.jpg,folder/,test:0,1,2` names.

    A folder stands for all files in it and in its folders, but hidden ones.
    """
    found = []
    for place in parse_images(images):
        if isinstance(place, range):
            found.append(Source(place))
            continue
        root, is_folder = Path(place), False
        with suppress(OSError, RuntimeError):  # what can't be looked at is told of when it is read
            root = root.expanduser()
            is_folder = root.is_dir()
        if not is_folder:
            found.append(Source(root, (root.resolve().parent.name,)))
            continue
        files = []
        for file in sorted(root.rglob("*")):
            *below, name = file.relative_to(root).parts
            if not any(part.startswith(".") for part in (*below, name)) and not file.is_dir():
                files.append(Source(file, (*reversed(below), root.resolve().name)))
        found += files or [Source(root, ("",))]
    return found


def read(
    source: Source, class_names: Sequence[str], *, raw: bool, test: Split | None
) -> list[Seen] | list[Skipped]:
    """The images of a source, in the form in which a model sees them; or why there are none.

    Args:
        source: Where they are.
        class_names: What a folder may name.
        raw: Files are in the dataset's form already.
        test: The split that numbers stand for.
    """
    if isinstance(source.place, range):
        return _of_test_split(source.place, test)
    truths = next(filter(None, (named(folder, class_names) for folder in source.folders)), ())
    name, folder = str(source.place), source.folders[0] if truths or len(source.folders) > 1 else ""
    try:
        if source.place.is_dir():
            raise FmnistError("the folder holds no files")
        if idx.count(source.place) is not None:
            images = idx.read(source.place)
            if images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
                raise FmnistError(f"expected images of 28x28, received shape {images.shape}")
            return [Seen(f"{name}:{number}", image, folder, truths) for number, image in enumerate(images)]
        photo = photos.read(source.place)
        if raw:
            return [Seen(name, _as_it_is(photo), folder, truths)]
        prepared = photos.prepare(photo)
    except (FmnistError, OSError) as error:
        return [Skipped(name, str(error).removeprefix(f"{name}: "))]
    step = -(-max(photo.shape[:2]) // SHOWN_SIDE)
    outline = tuple(polygon // step for polygon in prepared.outline)
    return [Seen(name, prepared.image, folder, truths, photo[::step, ::step].copy(), outline)]


def _of_test_split(numbers: range, test: Split | None) -> list[Any]:
    if test is None:
        raise ValueError("numbers of test images, and no test split")
    return [
        Seen(f"test:{number}", test.images[number], truths=(int(test.labels[number]),))
        if number < len(test)
        else Skipped(f"test:{number}", f"expected a number below {len(test)}, of the test images")
        for number in range(numbers.start, min(numbers.stop, max(len(test), numbers.start) + 1))
    ]


def _as_it_is(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A file's pixels in grey, if it is in the dataset's form."""
    if photo.shape[:2] != (SIDE, SIDE):
        height, width = photo.shape[:2]
        raise FmnistError(f"expected 28x28 pixels with raw=true, received {width}x{height}; leave raw out")
    # the weights of ITU-R BT.601; grey stays as it is
    return np.asarray(np.rint(photo @ np.array([0.299, 0.587, 0.114])), np.uint8)


def answers(
    found: Iterable[Source],
    predict: Predict,
    class_names: Sequence[str],
    *,
    raw: bool = False,
    test: Split | None = None,
    strangeness: Strangeness | None = None,
) -> Iterator[Answer | Skipped]:
    """A model's answers, in the order of the sources.

    Args:
        found: Where the images are.
        predict: Gives probabilities `(batch, classes)` of images `(batch, 28, 28)`.
        class_names: Of the model.
        raw: Files are in the dataset's form already.
        test: The split that numbers stand for.
        strangeness: How far images are from those that the model was trained on.
    """
    left = iter(found)
    with ThreadPoolExecutor(machine.num_threads()) as pool:
        while batch := list(islice(left, BATCH)):
            read_one = [pool.submit(read, source, class_names, raw=raw, test=test) for source in batch]
            seen: list[Seen | Skipped] = [each for future in read_one for each in future.result()]
            images = [each.image for each in seen if isinstance(each, Seen)]
            probabilities = iter(predict(np.array(images)) if images else ())
            strange = iter(strangeness(np.array(images)).tolist() if images and strangeness else ())
            for each in seen:
                yield each if isinstance(each, Skipped) else Answer(each, next(probabilities), next(strange, None))


@dataclass(frozen=True)
class Labelled:
    """Images `(images, 28, 28)`, and which classes are right of each, `(images, classes)`."""

    images: NDArray[np.uint8]
    right: NDArray[np.bool_]

    def accuracy(self, predict: Predict) -> float:
        """The share of which a model gets right."""
        return float(self.right[np.arange(len(self.right)), predict(self.images).argmax(axis=1)].mean())


def labelled(folder: str, class_names: Sequence[str]) -> Labelled:
    """The photographs in a folder's folders that name classes.

    Raises:
        FmnistError: If there are none, or one can't be used.
    """
    images, right = [], []
    with ThreadPoolExecutor(machine.num_threads()) as pool:
        left, one = iter(sources(folder)), partial(read, class_names=class_names, raw=False, test=None)
        batches = iter(lambda: list(islice(left, BATCH)), [])
        for each in (each for batch in batches for found in pool.map(one, batch) for each in found):
            if isinstance(each, Skipped):
                raise FmnistError(f"photos: {each.name}: {each.reason}; all of them must be usable")
            if each.truths:
                images.append(each.image)
                right.append(np.isin(np.arange(len(class_names)), each.truths))
    if not images:
        raise FmnistError(
            f"photos: expected folders in {folder} that are named after classes, with photographs in them; the "
            f"classes are {', '.join(class_names)}"
        )
    return Labelled(np.array(images), np.array(right))


def row(answer: Answer | Skipped, class_names: Sequence[str]) -> str:
    """An answer in a line, for people."""
    if isinstance(answer, Skipped):
        return f"{answer.name}: skipped: {answer.reason}"
    first, *more = (f"{class_names[label]} {answer.probabilities[label]:.0%}" for label in answer.likeliest)
    truth = " or ".join(class_names[label] for label in answer.seen.truths)
    verdict = {None: "", True: "; right", False: f"; is {truth}"}[answer.right]
    strange = f"; {STRANGE}" if answer.is_strange else ""
    return f"{answer.seen.name}: {first} ({', '.join(more)}){verdict}{strange}"


@dataclass
class Tally:
    """What answers come to: a record of each, and how often those in labelled folders are right."""

    class_names: tuple[str, ...]
    records: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    labelled: dict[tuple[int, ...], NDArray[np.int64]] = field(default_factory=dict)
    """How often each class was the answer, `(classes,)`, by what would have been right."""
    num_cut: int = 0
    """Photographs of which a garment was cut out."""
    unnamed: set[str] = field(default_factory=set)
    """Folders that name no class."""

    def add(self, answer: Answer | Skipped) -> None:
        """Takes an answer in."""
        if isinstance(answer, Skipped):
            self.skipped.append(answer)
            return
        seen, names = answer.seen, self.class_names
        record = {
            "file": seen.name,
            "label": answer.label,
            "class_name": names[answer.label],
            "probabilities": [round(float(share), 6) for share in answer.probabilities],
            "strangeness": None if answer.strangeness is None else round(answer.strangeness, 4),
        }
        if seen.truths:
            record |= {"truth": [names[label] for label in seen.truths], "right": answer.right}
        self.records.append(record)
        self.num_cut += seen.photo is not None
        if seen.folder and seen.truths:
            counts = self.labelled.setdefault(seen.truths, np.zeros(len(names), np.int64))
            counts[answer.label] += 1
        elif seen.folder:
            self.unnamed.add(seen.folder)

    def accuracy(self) -> "Share | None":
        """Of all images in labelled folders; None if there are none."""
        hits = sum(int(counts[list(truths)].sum()) for truths, counts in self.labelled.items())
        return Share(hits, int(sum(map(np.sum, self.labelled.values())))) if self.labelled else None

    def by_class(self) -> dict[str, "Share"]:
        """The same for the folders of each class, in the model's order."""
        return {
            "+".join(self.class_names[label] for label in truths): Share(
                int(counts[list(truths)].sum()), int(counts.sum())
            )
            for truths, counts in sorted(self.labelled.items())
        }


@dataclass(frozen=True)
class Share:
    """How many of how many."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.hits / self.n

    def record(self) -> dict[str, float]:
        """With its 95 % interval, Wilson's."""
        low, high = wilson(self.hits, self.n)
        return {
            "num_images": self.n,
            "right": self.hits,
            "accuracy": self.value,
            "ci95_low": low,
            "ci95_high": high,
        }


def note(tally: Tally, model: str, tags: Mapping[str, str]) -> str:
    """What answers come to, for people, in Markdown.

    Args:
        tally: The answers.
        model: Its name.
        tags: Of its version.
    """
    accuracy = tally.accuracy()
    lines = [f"**{model}** answered {len(tally.records):,} images; {len(tally.skipped):,} were skipped."]
    if accuracy:
        found = accuracy.record()
        test = f"test accuracy **{float(tags['test.accuracy']):.1%}**, " if "test.accuracy" in tags else ""
        lines = [
            f"{model}: {test}photos **{accuracy.value:.1%}** ({accuracy.hits} of {accuracy.n}; 95 % interval "
            f"{found['ci95_low']:.1%} to {found['ci95_high']:.1%}).",
            "",
            *markdown.table(
                ("folder", "images", "right", "95 % interval"),
                [
                    (
                        name,
                        str(share.n),
                        f"{share.value:.0%}",
                        "{ci95_low:.0%} to {ci95_high:.0%}".format(**share.record()),
                    )
                    for name, share in tally.by_class().items()
                ],
            ),
        ]
    return "\n".join(lines) + "\n"
