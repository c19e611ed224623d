"""Datasets: what is read, refused, downloaded, split and kept."""

import gzip
import http.server
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_photographs

from fmnist import cache, data
from fmnist.data import datasets, download, photographs, synthetic
from fmnist.data.idx import read
from fmnist.data.splits import _stratified
from fmnist.errors import FmnistError
from fmnist.settings import Validation, parse_validation


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes, made by hand."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_dataset(folder: Path, *, num_train: int = 40, num_test: int = 10, seed: int = 0) -> Path:
    """Four IDX files of noise with labels 0-9 in turn."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for prefix, count in (("train", num_train), ("t10k", num_test)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return folder


def load_folder(folder: Path, validation: str = "10", seed: int = 0) -> data.Splits:
    return data.load("folder", data_dir=str(folder), validation=parse_validation(validation), seed=seed)


def test_an_idx_file_is_read_byte_by_byte(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(bytes.fromhex("00000803 00000001 00000002 00000003 000102fdfeff"))
    np.testing.assert_array_equal(read(path), [[[0, 1, 2], [253, 254, 255]]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "received nothing"),
        (b"\x1f\x8b\x08\x00", "begins with 00 00 08; received 1f 8b 08 00"),
        (bytes.fromhex("00000d03") + b"\0" * 12, "received 00 00 0d 03"),
        (bytes.fromhex("0000080300000001"), "truncated: 8 bytes end inside the header of 16"),
        (
            idx(np.zeros((2, 28, 28), np.uint8))[:-1],
            "truncated: shape (2, 28, 28) needs 1584 bytes, received 1583",
        ),
        (idx(np.zeros((2, 28, 28), np.uint8)) + b"\0", "too long"),
    ],
)
def test_a_harmed_idx_file_is_refused(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(FmnistError, match="images") as caught:
        read(path)
    assert message in str(caught.value)


def test_a_truncated_gzip_file_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(np.zeros((2, 28, 28), np.uint8)))[:-12])
    with pytest.raises(FmnistError, match="can't be unpacked"):
        read(path)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("train-labels-idx1-ubyte", np.zeros(39, np.uint8), "expected one label for each of 40 images"),
        ("t10k-labels-idx1-ubyte", np.full(10, 10, np.uint8), "expected labels 0-9, received 10"),
        ("t10k-images-idx3-ubyte", np.zeros((10, 32, 32), np.uint8), "expected images of 28x28"),
        ("t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), "expected one label for each of 0 images"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, file, array, message):
    write_dataset(tmp_path)
    (tmp_path / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
    with pytest.raises(FmnistError) as caught:
        load_folder(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(FmnistError, match="expected the file train-images"):
        load_folder(tmp_path)
    with pytest.raises(FmnistError, match="expected a folder"):
        load_folder(tmp_path / "nowhere")


def test_other_files_do_not_pass_for_an_official_dataset(tmp_path):
    write_dataset(tmp_path)
    with pytest.raises(FmnistError, match=r"isn't the official mnist file.*-P dataset=folder"):
        data.load("mnist", data_dir=str(tmp_path), validation=Validation(10), seed=0)


def test_unpacked_files_serve_as_well(tmp_path):
    packed, plain = write_dataset(tmp_path / "packed"), tmp_path / "plain"
    plain.mkdir()
    for path in packed.iterdir():
        (plain / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    assert load_folder(packed).manifest["digest"] == load_folder(plain).manifest["digest"]


def test_the_environment_names_the_folder_too(tmp_path, monkeypatch):
    monkeypatch.setenv("FMNIST_DATA_DIR", str(write_dataset(tmp_path)))
    assert data.load("folder", data_dir="", validation=Validation(10), seed=0).manifest["counts"]["test"] == 10


@pytest.mark.parametrize("place", [".", "fashion-mnist"])
def test_the_environments_folder_serves_each_dataset_from_itself_or_a_folder_of_its_name(
    official_files, tmp_path, monkeypatch, place
):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for path in official_files.glob("*.gz"):
        (folder / path.name).symlink_to(path)
    monkeypatch.setenv("FMNIST_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(datasets, "fetch", lambda *_: pytest.fail("fetched"))
    splits = data.load("fashion-mnist", data_dir="", validation=Validation(5000), seed=0)
    assert splits.manifest["counts"]["train"] == 55_000


def test_another_datasets_files_in_the_environments_folder_are_passed_over_with_a_line_that_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FMNIST_DATA_DIR", str(write_dataset(tmp_path)))
    monkeypatch.setattr(datasets, "fetch", unreachable)
    with (
        pytest.warns(datasets.DataDirWarning, match=r"FMNIST_DATA_DIR is passed over for mnist: .*train-images"),
        pytest.raises(download.UnavailableError),
    ):
        data.load("mnist", data_dir="", validation=Validation(10), seed=0)


def test_validation_is_the_last_training_images_unless_said_otherwise(tmp_path):
    write_dataset(tmp_path)
    images = read(tmp_path / "train-images-idx3-ubyte.gz")
    splits = load_folder(tmp_path, "10")
    np.testing.assert_array_equal(splits.train.images, images[:30])
    np.testing.assert_array_equal(splits.validation.images, images[30:])


def test_a_stratified_split_has_each_class_evenly_and_the_same_images_for_a_seed(tmp_path):
    write_dataset(tmp_path)
    splits = load_folder(tmp_path, "stratified:20", seed=3)
    assert splits.manifest["class_balance"]["validation"] == [2] * 10
    labels = read(tmp_path / "train-labels-idx1-ubyte.gz")
    chosen = np.flatnonzero(_stratified(labels, 20, 3))
    assert chosen.tolist() == [0, 3, 4, 6, 8, 9, 11, 12, 15, 16, 17, 23, 25, 29, 30, 31, 32, 34, 37, 38]
    other = load_folder(tmp_path, "stratified:20", seed=4)
    assert other.manifest["digest"] != splits.manifest["digest"]


def test_validation_must_leave_images_to_train_on(tmp_path):
    write_dataset(tmp_path)
    with pytest.raises(FmnistError, match="expected fewer than the 40 training images, received 40"):
        load_folder(tmp_path, "40")


def test_duplicates_across_splits_are_counted(tmp_path):
    write_dataset(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    test = read(path).copy()
    train = read(tmp_path / "train-images-idx3-ubyte.gz")
    test[:3], test[3] = train[:3], train[-1]
    path.write_bytes(gzip.compress(idx(test)))
    with pytest.warns(data.DuplicatesWarning) as caught:
        splits = load_folder(tmp_path)
    assert [str(warning.message) for warning in caught] == [
        "3 images stand both in train and test",
        "1 images stand both in validation and test",
    ]
    assert splits.manifest["duplicates"] == {"train_validation": 0, "train_test": 3, "validation_test": 1}


def test_what_is_prepared_is_not_prepared_again_unless_it_was_harmed(tmp_path, monkeypatch, cache):
    write_dataset(tmp_path, seed=7)
    first = load_folder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(data, "cut", lambda *_: pytest.fail("prepared again"))
        again = load_folder(tmp_path)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert first.manifest == again.manifest
    (kept,) = [
        path
        for path in (cache / "prepared").glob("folder-*")
        if first.manifest["digest"] in (path / "manifest.json").read_text()
    ]
    content = bytearray((kept / "splits.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (kept / "splits.npz").write_bytes(content)
    np.testing.assert_array_equal(load_folder(tmp_path).train.images, first.train.images)
    assert not list((cache / "prepared").glob(".new-*"))


def test_a_cache_that_cannot_be_written_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path / "file"))
    for name in ("synthetic", "mnist"):
        with pytest.raises(FmnistError, match=r"the cache can't be written.*FMNIST_CACHE_DIR"):
            data.load(name, data_dir="", validation=Validation(5000), seed=0)


def test_synthetic_images_are_always_the_same():
    images, labels, test_images, test_labels = synthetic.draw()
    assert (images.shape, test_images.shape) == ((12_000, 28, 28), (2_000, 28, 28))
    assert labels[:10].tolist() == GOLDEN_LABELS
    # another machine's sine may round a pixel differently
    assert int(images.sum(dtype=np.int64)) == pytest.approx(GOLDEN_SUM, rel=1e-6)
    assert np.bincount(np.concatenate([labels, test_labels])).tolist() == [1400] * 10


def test_auto_falls_back_to_synthetic_with_a_loud_warning(monkeypatch):
    monkeypatch.setattr(datasets, "fetch", unreachable)
    with pytest.warns(data.SyntheticFallback, match="MADE-UP IMAGES"):
        splits = data.load("auto", data_dir="", validation=Validation(5000), seed=0)
    assert splits.manifest["dataset"] == "synthetic"
    assert "fallback" in splits.manifest


def test_fashion_mnist_never_falls_back(monkeypatch):
    monkeypatch.setattr(datasets, "fetch", unreachable)
    with pytest.raises(download.UnavailableError):
        data.load("fashion-mnist", data_dir="", validation=Validation(5000), seed=0)


def unreachable(*_: object) -> None:
    raise download.UnavailableError("no mirror answers")


def test_the_official_files_are_what_the_manifest_says(official_files):
    splits = data.load("fashion-mnist", data_dir=str(official_files), validation=Validation(5000), seed=0)
    assert splits.manifest["counts"] == {"train": 55_000, "validation": 5_000, "test": 10_000}
    assert splits.manifest["class_balance"]["test"] == [1_000] * 10
    assert splits.manifest["duplicates"] == {"train_validation": 0, "train_test": 0, "validation_test": 0}
    assert splits.train.labels[:5].tolist() == [9, 0, 0, 3, 0]


GOLDEN_LABELS = [9, 3, 5, 6, 6, 5, 0, 2, 1, 2]
GOLDEN_SUM = 364072458


class Mirror(http.server.ThreadingHTTPServer):
    """A mirror on the loopback interface that counts what it is asked for."""

    def __init__(self, content: bytes, *, cut: int = 0) -> None:
        mirror = self
        self.asked = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - cut])

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


GOOD = b"good bytes" * 1000


@pytest.fixture
def good():
    import hashlib

    with Mirror(GOOD) as mirror:
        yield mirror, {"file.gz": hashlib.sha256(GOOD).hexdigest()}
        mirror.shutdown()


def test_mirrors_are_tried_in_order_until_one_gives_the_right_bytes(tmp_path, good):
    mirror, hashes = good
    with Mirror(b"wrong") as wrong, Mirror(GOOD, cut=100) as cut:
        urls = ["http://127.0.0.1:1", wrong.url, cut.url, mirror.url]
        download.fetch(tmp_path, hashes, urls)
        wrong.shutdown()
        cut.shutdown()
        assert (wrong.asked, cut.asked, mirror.asked) == (1, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == GOOD


def test_what_is_there_is_not_fetched_again_and_what_was_harmed_is(tmp_path, good):
    mirror, hashes = good
    download.fetch(tmp_path, hashes, [mirror.url])
    download.fetch(tmp_path, hashes, [mirror.url])
    assert mirror.asked == 1
    (tmp_path / "file.gz").write_bytes(GOOD[:-1])
    download.fetch(tmp_path, hashes, [mirror.url])
    assert mirror.asked == 2
    assert (tmp_path / "file.gz").read_bytes() == GOOD


def test_without_any_mirror_the_error_names_the_ways_out(tmp_path):
    with pytest.raises(download.UnavailableError) as caught:
        download.fetch(tmp_path, {"file.gz": "0" * 64}, ["http://127.0.0.1:1"])
    for way in ("connect to the network", "data_dir=", "FMNIST_DATA_DIR", "dataset=synthetic"):
        assert way in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_two_processes_that_fetch_at_once_do_not_harm_each_other(tmp_path, good):
    mirror, hashes = good
    call = f"fetch(Path({str(tmp_path)!r}), {hashes}, [{mirror.url!r}])"
    code = f"from pathlib import Path; from fmnist.data.download import fetch; {call}"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["file.gz"]
    assert (tmp_path / "file.gz").read_bytes() == GOOD


def test_folders_of_photographs_are_a_dataset_whose_classes_are_their_names(tmp_path):
    folder = draw_photographs(tmp_path / "wardrobe")
    found = load_folder(folder, "stratified:2")
    assert found.class_names == ("Trouser", "my box")
    assert found.manifest["class_balance"] == {"train": [3, 3], "validation": [1, 1], "test": [2, 2]}
    legs = found.test.images[found.test.labels == 0]
    assert 3 * legs[:, -4:, 13:15].max() < legs[:, -4:].max() > 100  # black between them
    again = data.prepared(found.manifest["digest"])
    assert again.class_names == found.class_names
    np.testing.assert_array_equal(again.test.images, found.test.images)


def test_photographs_are_tested_by_their_content_and_a_seed_not_by_their_names(tmp_path):
    folder = draw_photographs(tmp_path / "wardrobe", count=15)
    first = photographs.find(folder, 0)
    (folder / "my box" / "3.png").rename(folder / "my box" / "another.png")
    (folder / "Trouser" / "copy.png").write_bytes((folder / "Trouser" / "0.png").read_bytes())
    (folder / ".hidden").mkdir()
    renamed = photographs.find(folder, 0)
    assert renamed.hashes == first.hashes
    assert [cache.sha256(file) for file, _ in renamed.test] == [
        cache.sha256(folder / "my box" / "another.png" if file.name == "3.png" and label == 1 else file)
        for file, label in first.test
    ]
    assert {file for file, _ in photographs.find(folder, 1).test} != {file for file, _ in renamed.test}


def test_a_photograph_stays_where_it_was_drawn_when_others_are_added(tmp_path):
    few = photographs.find(draw_photographs(tmp_path / "few", count=15), 0)
    more = photographs.find(draw_photographs(tmp_path / "more", count=40), 0)
    for before, after, least in ((few.test, more.test, 3), (few.train, more.train, 6)):
        old, new = ({(file.name, label) for file, label in each} for each in (before, after))
        assert old < new
        assert min(sum(label == each for _, label in old) for each in (0, 1)) >= least


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "Trouser" / "0.png").write_text("x"), r"0\.png: expected PNG, .* no such image"),
        (
            lambda folder: (folder / "Hat").mkdir(),
            "Hat: expected at least 3 photographs of a class, .* received 0",
        ),
        (
            lambda folder: (folder / "my box" / "same.png").write_bytes(
                (folder / "Trouser" / "0.png").read_bytes()
            ),
            r"same\.png: stands in Trouser too",
        ),
        (lambda folder: shutil.rmtree(folder / "my box"), "expected from 2 to 256 folders, .* found 1"),
        (
            lambda folder: shutil.rmtree(folder / "Trouser") or shutil.rmtree(folder / "my box"),
            "found neither; nor",
        ),
    ],
)
def test_photographs_that_make_no_dataset_are_refused_in_one_line(tmp_path, spoil, message):
    spoil(draw_photographs(tmp_path / "wardrobe"))
    with pytest.raises(FmnistError, match=message) as caught:
        load_folder(tmp_path / "wardrobe", "2")
    assert "\n" not in str(caught.value)
