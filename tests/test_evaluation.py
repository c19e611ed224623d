"""Figures against values worked out by hand, and a real evaluation of a model that this project didn't make."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from conftest import Store, register_foreign, tracked_in

from fmnist.errors import FmnistError
from fmnist.evaluation import evaluate
from fmnist.evaluation.calibration import cooled, reliability, selective, temperature
from fmnist.evaluation.corruptions import KINDS, corrupt
from fmnist.options import parse
from fmnist.settings import Evaluate, Validation
from fmnist.statistics import wilson

PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.35, 0.25, 0.4]], dtype=np.float32)
LABELS = np.array([0, 1, 1, 0], dtype=np.uint8)


def test_figures_are_those_worked_out_by_hand():
    result = evaluate(PROBABILITIES, LABELS)
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(-np.log([0.9, 0.3, 0.7, 0.35]).mean(), rel=1e-6)
    np.testing.assert_array_equal(result.confusion, [[1, 0, 1], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(result.precision, [1 / 2, 1, 0])
    np.testing.assert_allclose(result.recall, [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(result.f1, [1 / 2, 2 / 3, 0])
    np.testing.assert_array_equal(result.support, [2, 2, 0])
    assert result.macro_f1 == pytest.approx((1 / 2 + 2 / 3) / 3)
    # Each confidence has a bin of its own: right ones are short of 1 by .1 and .3, wrong ones over 0 by .6 and .4.
    assert result.calibration_error == pytest.approx((0.1 + 0.3 + 0.6 + 0.4) / 4, rel=1e-6)


def test_certain_and_right_is_perfectly_calibrated():
    result = evaluate(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.uint8))
    assert (result.accuracy, result.calibration_error, result.loss) == (1.0, 0.0, 0.0)


def test_certain_and_wrong_has_a_finite_loss():
    result = evaluate(np.eye(3, dtype=np.float32), np.array([1, 2, 0], dtype=np.uint8))
    assert np.isfinite(result.loss)
    assert result.calibration_error == 1.0


def test_a_bin_holds_the_means_of_its_images():
    sure = np.array([[0.82, 0.18], [0.84, 0.16], [0.45, 0.55]], dtype=np.float32)
    found = reliability(sure, np.array([0, 1, 1], dtype=np.uint8))
    assert found.count.tolist() == [0] * 8 + [1] + [0] * 3 + [2] + [0] * 2
    assert (found.confidence[12], found.accuracy[12]) == pytest.approx((0.83, 0.5))
    assert found.error == pytest.approx((2 * 0.33 + 0.45) / 3, rel=1e-5)


def test_wilsons_interval_is_that_of_the_published_formula():
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)
    assert wilson(10, 10)[1] == pytest.approx(1)


def test_the_temperature_is_the_one_by_which_logits_were_sharpened():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 10))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (honest.cumsum(axis=1) > rng.random((len(honest), 1))).argmax(axis=1).astype(np.uint8)
    sharp = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    found = temperature(sharp.astype(np.float32), labels)
    assert found == pytest.approx(3, rel=0.03)
    np.testing.assert_allclose(cooled(sharp.astype(np.float32), 3.0), honest, atol=1e-4)


def test_selective_accuracy_is_that_of_the_surest_images():
    found = selective(PROBABILITIES, LABELS)  # surest first: right, right, wrong, wrong
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(found.accuracy, [1, 1, 2 / 3, 1 / 2])
    assert found.area == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    assert (found.at(0.5), found.at(1)) == (1, 0.5)


@pytest.fixture(scope="module")
def images():
    from fmnist.data import synthetic

    return synthetic.draw()[2][:64]


@pytest.mark.parametrize("kind", KINDS)
def test_harm_grows_with_its_strength_and_is_the_same_each_time(kind, images):
    harmed = [corrupt(images, kind, strength) for strength in range(1, 6)]
    gaps = [np.abs(each.astype(float) - images).mean() for each in harmed]
    assert gaps == sorted(gaps)
    assert gaps[0] > 0
    assert {each.dtype for each in harmed} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(corrupt(images, kind, 3), harmed[2])


def test_a_shift_moves_each_image_by_whole_pixels_one_of_four_ways(images):
    moves = [((0, -3), (1, 2)), ((0, 3), (1, 2)), ((-3, 0), (1, 2)), ((3, 0), (1, 2))]
    framed = np.pad(images[:, 3:-3, 3:-3], ((0, 0), (3, 3), (3, 3)))  # so that nothing falls off
    possible = np.stack([np.roll(framed, *move) for move in moves])
    same = (possible == corrupt(framed, "shift", 3)).all(axis=(2, 3))
    assert same.any(axis=0).all()
    assert same.any(axis=1).all()


def test_full_inversion_is_the_negative(images):
    np.testing.assert_array_equal(corrupt(images, "inversion", 5), 255 - images)


RECORDS = [{"label": 1, "class_name": "Trouser", "probabilities": [0.25, 0.75]}]


@pytest.mark.parametrize(
    "answer",
    [
        np.array([[0.25, 0.75]]),
        [[0.25, 0.75]],
        pd.DataFrame([[0.25, 0.75]]),
        pd.DataFrame(RECORDS),
        RECORDS,
        {"predictions": RECORDS},
        [{"probabilities": {"T-shirt/top": 0.25, "Trouser": 0.75}}],
    ],
)
def test_probabilities_are_read_from_whatever_form_a_model_answers_in(answer):
    from fmnist.tracking.versions import _probabilities

    assert _probabilities(answer).tolist() == [[0.25, 0.75]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "model_uri: expected a model; type for example"),
        ({"model_uri": "models:/a/1", "dataset": "fasion-mnist"}, "Did you mean 'fashion-mnist'"),
        ({"model_uri": "models:/a/1", "split": "all"}, "unknown split 'all'"),
    ],
)
def test_what_can_not_be_evaluated_is_refused_at_the_door(given, message):
    with pytest.raises(FmnistError, match=message):
        parse(Evaluate, given)


# One `mlflow run . -e evaluate` of a model made with mlflow.pyfunc alone, read back from many sides:


@pytest.fixture(scope="module")
def store(new_store: Callable[[], Store]) -> Store:
    store = new_store()
    register_foreign(store, "garments", noise=10, known=False)
    register_foreign(store, "garments", noise=10)
    return store


@pytest.fixture(scope="module")
def done(store):
    return store.mlflow_run("evaluate", model_uri="models:/garments/1", dataset="synthetic")


@pytest.fixture(scope="module")
def result(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_figures_stand_on_the_run_the_model_and_the_version(store, result):
    run = store.client.get_run(result["run_id"])
    version = store.client.get_model_version("garments", "1")
    accuracy = result["test/accuracy"]
    assert 0.3 < result["test/accuracy_ci95_low"] < accuracy < result["test/accuracy_ci95_high"] < 1
    assert (result["num_images"], run.info.status, run.data.metrics["test/accuracy"]) == (
        2000,
        "FINISHED",
        accuracy,
    )
    model = store.client.get_logged_model(version.source.removeprefix("models:/"))
    assert {each.key: each.value for each in model.metrics}["test/robustness"] == result["test/robustness"]
    assert [each.model_id for each in run.inputs.model_inputs] == [model.model_id]
    assert (run.data.tags["model_version"], run.data.tags["model_id"]) == ("garments/1", model.model_id)
    assert version.tags["evaluation.test.run"] == result["run_id"]
    assert version.tags["evaluation.test.accuracy"] == f"{accuracy:.4f}"
    assert f"**{accuracy:.2%}**" in run.data.tags["mlflow.note.content"]


def test_the_run_holds_the_tables_and_the_plots(store, result):
    names = ("confusion_matrix", "reliability", "selective_accuracy", "robustness", "harmed_images")
    expected = {f"test/{name}.png" for name in names}
    expected |= {"test/per_class.json", "test/confusion_matrix.csv", "test/robustness.json", "evaluation.md"}
    assert expected <= store.artifacts(result["run_id"])
    root = store.folder / "artifacts" / result["run_id"] / "artifacts" / "test"
    table = json.loads((root / "robustness.json").read_text())
    assert [row[0] for row in table["data"]] == list(KINDS)
    assert np.mean([row[1:] for row in table["data"]]) == pytest.approx(result["test/robustness"])
    by_kind = [result[f"test/robustness_{kind}"] for kind in KINDS]
    assert np.mean(by_kind) == pytest.approx(result["test/robustness"])


def test_speed_is_that_of_the_served_form(result):
    assert 0 < result["served/latency_ms_median"] <= result["served/latency_ms_p95"]
    assert result["served/images_per_second"] > 0


def test_one_is_warned_of_a_model_of_unknown_training(done, result):
    assert "OtherDataWarning: it isn't known what garments/1 was trained on" in done.stderr


def test_a_models_own_dataset_is_taken_where_none_is_named_and_another_version_of_it_warns(store):
    from entry_points.evaluate import evaluate as run_evaluate
    from fmnist.tracking import evaluation as log
    from fmnist.tracking import runs, versions

    with tracked_in(store):
        found = run_evaluate(Evaluate(model_uri="models:/garments/2", split="validation"))
        assert (found["dataset"], found["num_images"]) == ("synthetic", 2000)
        store.client.set_model_version_tag("garments", "2", "dataset.digest", "0" * 32)
        version, message = (
            versions.find("models:/garments/2"),
            r"garments/2 was trained on synthetic \(000000000000\)",
        )
        splits = versions.splits(version, "", "")
        with (
            runs.run(Evaluate(model_uri=version.uri), "evaluate"),
            pytest.warns(log.OtherDataWarning, match=message),
        ):
            log.log_begin(version, splits)


@pytest.mark.parametrize(
    ("model_uri", "message"),
    [
        ("models:/garments/9", "no model at models:/garments/9: "),
        ("models:/garments@nobody", "no model at models:/garments@nobody: "),
        ("models:/nothing/1", "no model at models:/nothing/1: "),
        ("models:/garments/1", "dataset: it isn't known what garments/1 was trained on; type for example"),
    ],
)
def test_a_model_that_is_not_there_or_lacks_a_dataset_is_refused_in_one_line(store, model_uri, message):
    from entry_points.evaluate import evaluate as run_evaluate

    with tracked_in(store), pytest.raises(FmnistError) as caught:
        run_evaluate(Evaluate(model_uri=model_uri))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    named = "; there is models:/garments/1"
    assert (named in str(caught.value)) == (model_uri in ("models:/garments/9", "models:/garments@nobody"))


@pytest.mark.parametrize("error", ["ValueError", "TypeError", "AttributeError"])
def test_a_model_that_refuses_to_load_is_refused_in_one_line(tmp_path, error):  # as Keras does with a Lambda layer
    import mlflow

    from fmnist.tracking import versions

    file = tmp_path / "model.py"
    lines = [
        "import mlflow",
        "class Unsafe(mlflow.pyfunc.PythonModel):",
        f"    def load_context(self, context): raise {error}('unsafe')",
        "    def predict(self, context, model_input: list[str]): ...",
        "mlflow.models.set_model(Unsafe())",
    ]
    file.write_text("\n".join(lines))
    folder = str(tmp_path / "model")
    mlflow.pyfunc.save_model(folder, python_model=str(file), pip_requirements=["mlflow"])
    version = versions.Version(folder, "", "", None, {}, None)
    with pytest.raises(FmnistError, match=r"model can't be loaded: unsafe$"):
        versions.load(version, 10)


@pytest.mark.parametrize(
    ("dataset", "loaded", "validation"),
    [
        ("", "fashion-mnist", 2000),
        ("fashion-mnist", "fashion-mnist", 2000),
        ("auto", "auto", 2000),
        ("mnist", "mnist", 5000),
    ],
)
def test_a_models_own_dataset_is_cut_as_its_training_cut_it(monkeypatch, dataset, loaded, validation):
    from fmnist.tracking import versions

    monkeypatch.setattr(versions.data, "load", lambda name, **how: (name, how))
    training = versions.Training("auto", "", Validation(2000, stratified=True), 3)
    version = versions.Version("models:/a/1", "a", "1", None, {"dataset": "fashion-mnist"}, training)
    name, how = versions.splits(version, dataset, "")
    assert (name, how["validation"].count, how["seed"]) == (loaded, validation, 3 if validation == 2000 else 0)
