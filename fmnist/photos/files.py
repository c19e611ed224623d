"""Reads files of images as people have them: any size and kind, turned as their camera says."""

import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmnist.errors import FmnistError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 200_000_000
"""A file that claims to hold more is taken for a decompression bomb."""
MAX_UNPACKED = 50_000_000
"""Of pixels in memory, after a JPEG was reduced."""
LONGEST_SIDE = 1024
"""Larger photographs are reduced as they are read: the garment is cut out of far fewer pixels."""


def read(path: Path) -> NDArray[np.uint8]:
    """The photograph in a file, `(height, width, 3)`, RGB, upright, its longest side near `LONGEST_SIDE` at most.

    Of an animation the first frame; what is transparent stands before white, or before black if the rest is
    nearly white.

    Raises:
        FmnistError: If the file can't be read as an image.
    """
    from PIL import Image, UnidentifiedImageError

    kinds = "PNG, JPEG, WebP, GIF, BMP or TIFF"
    try:
        from pillow_heif import register_heif_opener

        register_heif_opener()
        kinds += " or HEIC"
    except ImportError:
        if path.suffix.lower() in (".heic", ".heif"):
            raise FmnistError(
                f"{path}: reading HEIC needs the package pillow-heif, which is missing; "
                "type pip install pillow-heif, or save the photo as JPEG"
            ) from None
    try:
        # Pillow's remarks on odd files; `catch_warnings` is of no use among threads: the last to leave it may
        # leave its filter behind
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with path.open("rb") as file:
            image: Image.Image = Image.open(file)
            if image.width * image.height > MAX_PIXELS:
                raise FmnistError(
                    f"{path}: expected at most {MAX_PIXELS:,} pixels, "
                    f"received {image.width:,} x {image.height:,}; make the picture smaller first"
                )
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # a JPEG is decoded at a fraction of its size
            if image.width * image.height > MAX_UNPACKED:
                raise FmnistError(
                    f"{path}: expected at most {MAX_UNPACKED:,} pixels of a picture that is no JPEG, "
                    f"received {image.width:,} x {image.height:,}; make it smaller first"
                )
            image.load()
            image = _upright(image)
            factor = max(image.size) // LONGEST_SIDE
            if image.mode.startswith(("I", "F")):  # 16 bits and more a pixel
                image = _eight_bits(image)
            elif image.mode in ("P", "PA", "LA", "La", "RGBa", "RGBA") or "transparency" in image.info:
                image = _before_a_plain_wall(image.convert("RGBA"))
            image = image.convert("RGB")
            photo = np.asarray(image.reduce(factor) if factor > 1 else image)
    except FileNotFoundError:
        raise FmnistError(f"{path}: no such file; type the path of an image") from None
    except Image.DecompressionBombError:
        raise FmnistError(
            f"{path}: expected at most {MAX_PIXELS:,} pixels, received more; make it smaller"
        ) from None
    except UnidentifiedImageError:
        reason = "the file is empty" if path.stat().st_size == 0 else "this is no such image"
        raise FmnistError(f"{path}: expected {kinds}, but {reason}; give another file") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # what Pillow raises for damaged files
        raise FmnistError(f"{path}: can't be read as an image ({error}); give another file") from None
    return photo


def _upright(image: "Image.Image") -> "Image.Image":
    """Turned as its camera says; as it is where that can't be read."""
    from PIL import ExifTags, Image

    turns = (
        *(Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
        *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE),
        Image.Transpose.ROTATE_90,
    )
    try:
        said = image.getexif().get(ExifTags.Base.Orientation)
    except (struct.error, SyntaxError, OSError, ValueError, TypeError, KeyError):  # what damaged EXIF raises
        return image
    return image.transpose(turns[said - 2]) if isinstance(said, int) and 2 <= said <= 8 else image


def _eight_bits(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    values = np.nan_to_num(np.asarray(image, np.float32))
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8))


def _before_a_plain_wall(image: "Image.Image") -> "Image.Image":
    """What is seen through is white, or black where the rest would be lost on white."""
    from PIL import Image

    pixels = np.asarray(image.reduce(max(1, max(image.size) // 256)), np.float64)
    weight = pixels[..., 3]
    brightness = (pixels[..., :3].mean(axis=2) * weight).sum() / max(weight.sum(), 1)
    wall = Image.new("RGBA", image.size, "black" if brightness > 200 else "white")
    return Image.alpha_composite(wall, image)
