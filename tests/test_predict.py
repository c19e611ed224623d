"""Answers for photographs and other images: a real run, read back; names, folders and bad files."""

import gzip
import json
import struct
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import Store, register_foreign, tracked_in
from PIL import Image, ImageDraw
from test_data import write_dataset

from fmnist import data, prediction, summary
from fmnist.classes import named
from fmnist.errors import FmnistError, Incomplete
from fmnist.evaluation.strangeness import learn
from fmnist.evaluation.strangeness import read as kept
from fmnist.images import parse_images
from fmnist.options import parse
from fmnist.settings import Predict, Validation
from fmnist.statistics import wilson

MODEL = "models:/garments/1"
GARMENTS = data.datasets.DATASETS["fashion-mnist"].class_names
FOLDERS = {"t-shirt TOP": (0,), "trouser": (1,), "Sandal + SNEAKER": (5, 7)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("test:0,1,2", (range(1), range(1, 2), range(2, 3))),
        ("photo.jpg, folder/,test:7-9,4", ("photo.jpg", "folder/", range(7, 10), range(4, 5))),
        ("4,test:4,b 2.png,5", ("4", range(4, 5), "b 2.png", "5")),
    ],
)
def test_images_are_files_folders_and_numbers_of_test_images(text, found):
    assert parse_images(text) == found


@pytest.mark.parametrize("text", ["test:", "test:x", "a.jpg,,b.jpg", "test:0,,1", "test:-1"])
def test_what_names_no_image_is_refused_at_the_door(text):
    with pytest.raises(FmnistError, match="images: expected files, folders, or test: and numbers"):
        parse(Predict, {"images": text})


@pytest.mark.parametrize(
    ("folder", "labels"),
    [
        ("Coat", (4,)),
        ("ankle_boot", (9,)),
        ("T-shirt", (0,)),
        ("tshirt/top", (0,)),
        ("Sandal+Sneaker+Ankle boot", (5, 7, 9)),
        ("Sandal+hat", ()),
        ("coats", ()),
        ("+", ()),
        ("", ()),
    ],
)
def test_a_folder_names_classes_whatever_its_case_and_punctuation(folder, labels):
    assert named(folder, GARMENTS) == labels


def test_a_class_of_several_is_named_by_the_whole_and_by_each():
    names = ("Sandal+Sneaker", "Café")
    assert named("Sneaker", ("Sandal+Sneaker", "Sneaker")) == (1,)
    assert [named(folder, names) for folder in ("sandal sneaker", "Sneaker", "CAFE\u0301")] == [(0,), (0,), (1,)]


def idx_file(images: np.ndarray) -> bytes:
    return struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes()


# One `mlflow run . -e predict` of a model made with mlflow.pyfunc alone, read back from many sides:


@pytest.fixture(scope="module")
def store(new_store: Callable[[], Store]) -> Store:
    store = new_store()
    register_foreign(store, "garments", noise=10)
    card = "A card.\n\n### Promotion\n\n**Promoted**: well.\n\nRun 0."
    store.client.update_model_version("garments", "1", card)
    store.client.set_model_version_tag("garments", "1", "test.accuracy", "0.9150")
    return store


@pytest.fixture(scope="module")
def test_split():
    return data.load("synthetic", data_dir="", validation=Validation(2000), seed=0).test


@pytest.fixture(scope="module")
def images(tmp_path_factory, test_split) -> Path:
    """Twelve test images in folders that name their classes, three in one that names none, and a hidden file."""
    root = tmp_path_factory.mktemp("images")
    for folder, labels in {**FOLDERS, "things": (8,)}.items():
        (root / folder).mkdir()
        chosen = test_split.images[np.isin(test_split.labels, labels)][: 3 if folder == "things" else 4]
        for number, image in enumerate(chosen):
            Image.fromarray(image).save(root / folder / f"{number}.png")
    (root / "things" / ".hidden").write_text("no image")
    return root


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> dict[str, str]:
    """Files that can't be used, and what is said of them."""
    root = tmp_path_factory.mktemp("bad")
    packed = zlib.compressobj(9, wbits=31)
    header = struct.pack(">4B3I", 0, 0, 8, 3, 2_000_000, 28, 28)
    zeros = zlib.compressobj(9, wbits=-15)
    block = zeros.compress(b"\0" * 10_000_000) + zeros.flush(zlib.Z_FULL_FLUSH)
    contents = {
        "text.jpg": (b"no image", "this is no such image"),
        "empty.png": (b"", "the file is empty"),
        "bomb-ubyte.gz": (
            packed.compress(header) + packed.flush(zlib.Z_FULL_FLUSH) + 60 * block,  # needs no end: it is too long
            "expected at most 536,870,912 bytes, received more",
        ),
        "cut-ubyte": (idx_file(np.zeros((3, 28, 28), np.uint8))[:-1], "truncated"),
        "wide-ubyte": (idx_file(np.zeros((3, 32, 32), np.uint8)), "expected images of 28x28"),
    }
    for name, (content, _) in contents.items():
        (root / name).write_bytes(content)
    Image.new("L", (40, 30)).save(root / "large.png")
    Image.new("1", (16_000, 16_000)).save(root / "bomb.png")
    (root / "nothing").mkdir()
    reasons = {name: reason for name, (_, reason) in contents.items()}
    reasons |= {"large.png": "expected 28x28 pixels with raw=true, received 40x30", "missing.png": "no such file"}
    reasons |= {"nothing": "the folder holds no files", "bomb.png": "expected at most 200,000,000 pixels"}
    return {str(root / name): reason for name, reason in reasons.items()}


@pytest.fixture(scope="module")
def done(store, images, bad):
    (store.folder / "two-ubyte").write_bytes(idx_file(np.full((2, 28, 28), 90, np.uint8)))
    named = ",".join([*bad, str(images), str(store.folder / "two-ubyte"), "test:0,1,2000"])
    return store.mlflow_run("predict", images=named, model_uri=MODEL, raw="true")


@pytest.fixture(scope="module")
def result(done):
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def test_what_can_not_be_used_is_named_with_its_reason_and_all_else_is_answered(done, result, bad):
    assert done.returncode == 1
    assert "incomplete: 10 of 29 images were skipped, the first: " in done.stderr
    skipped = {each["name"]: each["reason"] for each in result["skipped"]}
    assert set(skipped) == {*bad, "test:2000"}
    for name, reason in bad.items():
        assert reason in skipped[name]
        assert name not in skipped[name]
        assert f"{name}: skipped: {skipped[name]}" in done.stderr
    assert (result["num_images"], result["num_skipped"]) == (19, 10)
    assert result["cut_by"] is None


def test_each_answer_is_that_of_the_served_model(store, result, images, test_split):
    from fmnist.tracking import versions

    with tracked_in(store):
        served = versions.load(versions.find(MODEL), 10)
    answers = {each["file"]: each for each in result["answers"]}
    assert {"test:0", "test:1", f"{store.folder / 'two-ubyte'}:1"} <= set(answers)
    expected = served.predict(test_split.images[:1])[0]
    np.testing.assert_allclose(answers["test:0"]["probabilities"], expected, atol=1e-6)
    assert answers["test:0"]["truth"] == [GARMENTS[test_split.labels[0]]]
    file = images / "trouser" / "0.png"
    expected = served.predict(np.asarray(Image.open(file))[None])[0]
    np.testing.assert_allclose(answers[str(file)]["probabilities"], expected, atol=1e-6)
    assert answers[str(file)]["class_name"] == GARMENTS[expected.argmax()]


def test_folders_that_name_classes_give_accuracy_with_an_interval_and_by_class(result):
    of_folders = [each for each in result["answers"] if "truth" in each and not each["file"].startswith("test:")]
    assert len(of_folders) == 12
    right = sum(each["class_name"] in each["truth"] for each in of_folders)
    assert result["accuracy"] == right / 12 > 0.5
    assert result["accuracy_ci95"] == pytest.approx(wilson(right, 12))
    assert {name: each["num_images"] for name, each in result["per_class"].items()} == {
        "T-shirt/top": 4,
        "Trouser": 4,
        "Sandal+Sneaker": 4,
    }
    assert sum(each["right"] for each in result["per_class"].values()) == right


def test_a_folder_that_names_no_class_is_said(done):
    assert "things: names no class of garments/1; its images are answered, not judged" in done.stderr


def test_the_run_ends_as_finished_with_pictures_tables_and_the_model(store, result):
    give_up = time.monotonic() + 60
    while (run := store.client.get_run(result["run_id"])).info.status != "FINISHED":  # the launcher wrote FAILED
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert run.data.tags["entry_point"] == "predict"
    assert run.data.metrics["photos/accuracy"] == result["accuracy"]
    expected = {"pictures/page-01.png", "pictures/page-02.png", "photos/confusion_matrix.png"}
    assert expected | {"photos/per_class.json", "answers.json"} <= store.artifacts(result["run_id"])
    model_id = store.client.get_model_version("garments", "1").source.removeprefix("models:/")
    assert [each.model_id for each in run.inputs.model_inputs] == [model_id]
    metrics = {each.key: each.value for each in store.client.get_logged_model(model_id).metrics}
    assert metrics["photos/accuracy"] == result["accuracy"]


def test_the_version_shows_both_figures_side_by_side_and_keeps_its_other_words(store, result):
    version = store.client.get_model_version("garments", "1")
    assert version.tags["photos.accuracy"] == f"{result['accuracy']:.4f}"
    assert version.tags["photos.run"] == result["run_id"]
    both = f"test accuracy **91.5%**, photos **{result['accuracy']:.1%}** ("
    assert both in store.client.get_run(result["run_id"]).data.tags["mlflow.note.content"]
    assert version.description.startswith(
        "A card.\n\n### Promotion\n\n**Promoted**: well.\n\nRun 0.\n\n### Photog"
    )
    assert both in version.description


# What the entry point does in this process:


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """Trousers on a wall."""
    picture = Image.new("RGB", (300, 400), (200, 190, 170))
    legs = [(100, 60), (200, 60), (215, 350), (165, 350), (150, 150), (135, 350), (85, 350)]
    ImageDraw.Draw(picture).polygon(legs, fill=(30, 40, 90))
    file = tmp_path_factory.mktemp("photo") / "legs.jpg"
    picture.save(file)
    return file


def test_a_photo_is_cut_out_and_answered_and_no_accuracy_is_made_up(store, photo):
    from entry_points.predict import predict

    with tracked_in(store):
        result = predict(Predict(images=f"{photo},test:0", model_uri=MODEL))
    assert [each["file"] for each in result["answers"]] == [str(photo), "test:0"]
    assert (result["answers"][0]["class_name"], result["accuracy"]) == ("Trouser", None)
    assert result["cut_by"] == ("u2netp" if find_spec("rembg") else "GrabCut")
    assert store.artifacts(result["run_id"]) == {"pictures/page-01.png", "answers.json"}


def test_by_default_the_first_three_test_images_are_answered(store):
    from entry_points.predict import predict

    with tracked_in(store):
        result = predict(Predict(model_uri=MODEL))
    assert [each["file"] for each in result["answers"]] == ["test:0", "test:1", "test:2"]


def test_test_images_of_other_classes_than_the_models_are_refused_before_a_run_begins(store, tmp_path):
    from entry_points.predict import predict

    before = len(store.client.search_runs([store.experiment]))
    with tracked_in(store), pytest.raises(FmnistError, match=r"^dataset: garments/1 knows .*; folder has 0, 1, 2"):
        predict(
            Predict(
                model_uri=MODEL, dataset="folder", data_dir=str(write_dataset(tmp_path / "digits", num_train=6000))
            )
        )
    assert len(store.client.search_runs([store.experiment])) == before


def test_nothing_that_can_be_used_is_an_incomplete_run_too(store, tmp_path):
    from entry_points.predict import predict

    with tracked_in(store), pytest.raises(Incomplete, match="1 of 1 images were skipped") as caught:
        predict(Predict(images=str(tmp_path / "nowhere"), model_uri=MODEL))
    run = store.client.get_run(caught.value.result["run_id"])
    assert (run.info.status, caught.value.result["num_images"]) == ("FINISHED", 0)


def test_a_model_that_is_not_there_is_refused_before_a_run_begins(store):
    from entry_points.predict import predict

    before = len(store.client.search_runs([store.experiment]))
    with tracked_in(store), pytest.raises(FmnistError, match="no model at models:/garments@champion: "):
        predict(Predict(model_uri="models:/garments@champion"))
    assert len(store.client.search_runs([store.experiment])) == before


def test_a_photo_s_outline_lies_on_the_reduced_photo(photo):
    (seen,) = prediction.read(prediction.sources(str(photo))[0], GARMENTS, raw=False, test=None)
    points = np.concatenate(seen.outline)
    scale = seen.photo.shape[0] / 400
    found = np.concatenate([points.min(axis=0), points.max(axis=0)])
    np.testing.assert_allclose(found, np.array([85, 60, 215, 350]) * scale, atol=10)


def test_images_are_read_a_batch_at_a_time_and_dropped(images):
    read = []

    def many():
        for number in range(1000):
            read.append(number)
            yield prediction.Source(images / "trouser" / f"{number % 4}.png", ("trouser",))

    asked = []

    def predict(batch: np.ndarray) -> np.ndarray:
        asked.append(len(batch))
        return np.full((len(batch), 10), 0.1, np.float32)

    answers = prediction.answers(many(), predict, GARMENTS, raw=True)
    next(answers)
    assert (len(read), asked) == (prediction.BATCH, [prediction.BATCH])
    assert sum(1 for _ in answers) == 999
    assert max(asked) == prediction.BATCH


def test_an_idx_file_is_read_gzipped_too(tmp_path):
    file = tmp_path / "images-idx3-ubyte.gz"
    file.write_bytes(
        gzip.compress(idx_file(np.arange(2 * 784, dtype=np.uint16).astype(np.uint8).reshape(2, 28, 28)))
    )
    (source,) = prediction.sources(str(file))
    assert len(source) == 2
    assert [each.image[0, 1] for each in prediction.read(source, GARMENTS, raw=False, test=None)] == [
        1,
        (784 + 1) % 256,
    ]


def test_a_terminal_is_not_shown_the_answers_twice():
    shown = list(summary.lines({"num_images": 1, "answers": [{"file": "a.png"}], "skipped": [{"name": "b"}]}))
    assert shown == ["images  1"]


# How strange an image is:


@pytest.fixture(scope="module")
def strangeness():
    splits = data.load("synthetic", data_dir="", validation=Validation(2000), seed=0)
    return learn(splits.train.images, splits.validation.images)


def test_of_new_images_like_those_trained_on_some_5_percent_are_strange_and_noise_always_is(
    strangeness, test_split
):
    found = strangeness(test_split.images)
    assert 0.03 < (found > 1).mean() < 0.07
    noise = np.random.default_rng(0).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    assert strangeness(noise).min() > 1


def test_strangeness_survives_being_written(strangeness, test_split, tmp_path):
    strangeness.write(tmp_path / "kept.npz")
    np.testing.assert_array_equal(kept(tmp_path / "kept.npz")(test_split.images), strangeness(test_split.images))
    assert kept(tmp_path / "missing.npz") is None


def test_a_strange_image_is_called_so(strangeness):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    (found,) = strangeness(noise[None])
    answer = prediction.Answer(prediction.Seen("a.png", noise), np.eye(10, dtype=np.float32)[8], float(found))
    assert prediction.row(answer, GARMENTS) == (
        "a.png: Bag 100% (T-shirt/top 0%, Trouser 0%); like nothing I was trained on"
    )
    tally = prediction.Tally(GARMENTS)
    tally.add(answer)
    assert tally.records[0]["strangeness"] == pytest.approx(found, abs=1e-4)
