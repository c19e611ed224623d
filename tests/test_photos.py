"""A photograph of a garment becomes an image in the dataset's form."""

import numpy as np
import pytest
from PIL import Image

from fmnist.errors import FmnistError
from fmnist.photos import files, prepare, read


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 2), (8, 8), (40, 60)])
@pytest.mark.parametrize("fill", [0, 255, "noise"])
def test_whatever_the_photograph_the_image_is_not_empty(shape, fill):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    photo = noise if fill == "noise" else np.full((*shape, 3), fill, np.uint8)
    prepared = prepare(photo)
    assert prepared.image.shape == (28, 28)
    assert prepared.image.dtype == np.uint8
    assert prepared.image.any()
    for polygon in prepared.outline:
        assert (polygon >= 0).all()
        assert (polygon < (shape[1], shape[0])).all()


def test_a_photograph_is_read_as_its_camera_says_it_stands(tmp_path):
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste("red", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    picture.save(tmp_path / "turned.jpg", exif=exif)
    photo = read(tmp_path / "turned.jpg")
    assert photo.shape == (40, 20, 3)
    assert photo[2, 10, 1] < 60  # red above
    assert photo[30, 10, 1] > 200


@pytest.mark.parametrize(("mode", "ending"), [("L", "png"), ("1", "png"), ("I;16", "png"), ("CMYK", "jpg")])
def test_pictures_of_every_mode_are_read_as_rgb(mode, ending, tmp_path):
    picture = Image.fromarray(np.tile(np.linspace(0, 255, 30, dtype=np.uint8), (20, 1))).convert("L")
    sixteen_bits = Image.fromarray(np.asarray(picture, np.uint16) * 257)
    picture = sixteen_bits if mode == "I;16" else picture.convert(mode)
    picture.save(tmp_path / f"picture.{ending}")
    photo = read(tmp_path / f"picture.{ending}")
    assert photo.shape == (20, 30, 3)
    assert photo[:, -1].min() > 200
    assert photo[:, 0].max() < 60


@pytest.mark.parametrize(("tone", "wall"), [(30, 255), (250, 0)])
def test_what_is_transparent_contrasts_with_the_rest(tone, wall, tmp_path):
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[5:15, 5:15] = (tone, tone, tone, 255)
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    photo = read(tmp_path / "cut.png")
    assert (photo[0, 0] == wall).all()
    assert (photo[10, 10] == tone).all()


def test_a_large_photograph_is_reduced_as_it_is_read(tmp_path):
    Image.new("RGB", (4000, 3000), "blue").save(tmp_path / "large.jpg")
    assert read(tmp_path / "large.jpg").shape[1] < 2 * files.LONGEST_SIDE


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "two.gif")[5, 5].tolist() == [255, 0, 0]


def test_what_is_no_image_is_refused_in_one_line_with_the_reason(tmp_path, monkeypatch):
    Image.new("RGB", (300, 200)).save(tmp_path / "good.jpg")
    contents = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"hello", "this is no such image"),
        "cut.png": ((b"\x89PNG\r\n\x1a\n" + b"\0" * 20), "expected|can't be read"),
        "half.jpg": ((tmp_path / "good.jpg").read_bytes()[:700], "can't be read as an image"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FmnistError, match=reason) as raised:
            read(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(FmnistError, match="no such file"):
        read(tmp_path / "absent.jpg")
    with pytest.raises(FmnistError, match="can't be read"):
        read(tmp_path)
    monkeypatch.setattr(files, "MAX_PIXELS", 50_000)
    with pytest.raises(FmnistError, match=r"expected at most 50,000 pixels, received 300 x 200"):
        read(tmp_path / "good.jpg")
