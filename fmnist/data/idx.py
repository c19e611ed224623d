"""IDX files: four of them make a dataset."""

import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fmnist.errors import FmnistError

NUM_CLASSES = 10
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)
MAX_BYTES = 1 << 29  # ten times Fashion-MNIST's; a gzipped file may grow a thousandfold
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]


def count(path: Path) -> int | None:
    """How many images an IDX file says that it holds; None if it isn't one, or can't be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(8)
    except (OSError, EOFError, zlib.error):
        return None
    return int(struct.unpack(">I", start[4:])[0]) if start[:4] == b"\0\0\x08\x03" and len(start) == 8 else None


def read(path: Path) -> NDArray[np.uint8]:
    """The bytes of an IDX file, gzipped or not, as an array of its own shape.

    Source: http://yann.lecun.com/exdb/mnist/, "The IDX file format".

    Raises:
        FmnistError: If it isn't an IDX file of unsigned bytes, is shorter or longer than it says, or too large.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FmnistError(f"{path}: expected a gzipped IDX file, but it can't be unpacked ({error})") from None
    if len(content) > MAX_BYTES:
        raise FmnistError(f"{path}: expected at most {MAX_BYTES:,} bytes, received more")
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


def read_four(paths: Mapping[str, Path]) -> Arrays:
    """Train images, train labels, test images, test labels, of four files by their standard names.

    Raises:
        FmnistError: If they don't make a dataset of 28x28 images with labels 0-9.
    """
    arrays = {name: read(path) for name, path in paths.items()}
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
    return cast(Arrays, tuple(arrays[name] for name in FILES))
