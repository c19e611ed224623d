"""What MLflow has stored after a real `mlflow run`, and how a run ends when it is broken off."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, Store, fit_and_test, tracked_in
from mlflow import MlflowClient

from fmnist import data, machine, training
from fmnist.evaluation import evaluate
from fmnist.settings import Train, Validation

NewStore = Callable[[], Store]


def result_of(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# One `mlflow run . -e train`, read back from many sides:


@pytest.fixture(scope="module")
def store(new_store: NewStore) -> Store:
    return new_store()


@pytest.fixture(scope="module")
def result(store):
    parameters = {"hyper": "dense=32", "epochs": 3, "augment": "shift", "tensorboard": "true", "device": "cpu"}
    return result_of(store.mlflow_run("train", model="lenet", dataset="synthetic", **parameters))


@pytest.fixture(scope="module")
def run(store, result):
    return store.client.get_run(result["run_id"])


def test_the_run_is_finished_and_described(run):
    assert run.info.status == "FINISHED"
    assert f"{run.data.metrics['test/accuracy']:.2%}" in run.data.tags["mlflow.note.content"]


def test_the_run_says_by_its_name_what_it_is(run):
    assert run.info.run_name == "lenet · cpu · seed 0"
    assert run.data.tags["entry_point"] == "train"


def test_parameters_are_kept_as_typed_and_as_resolved(run):
    params = run.data.params
    assert (params["model"], params["epochs"], params["batch_size"], params["hyper"]) == (
        "lenet",
        "3",
        "auto",
        "dense=32",
    )
    assert (params["recipe.batch_size"], params["recipe.learning_rate"]) == ("128", "0.001")
    assert (params["hyper.dense"], params["hyper.filters"], params["recipe.augment"]) == ("32", "6,16", "shift")


def test_every_epoch_has_its_metrics_at_its_step(store, result):
    for name in (
        *("train/loss", "train/accuracy", "val/loss", "val/accuracy"),
        *("perf/epoch_seconds", "perf/images_per_second"),
    ):
        history = store.client.get_metric_history(result["run_id"], name)
        assert [metric.step for metric in history] == [1, 2, 3]
    losses = [metric.value for metric in store.client.get_metric_history(result["run_id"], "train/loss")]
    assert losses == sorted(losses, reverse=True)


def test_the_test_figures_are_logged_and_agree_with_the_tables(store, run, result):
    metrics = run.data.metrics
    assert metrics["test/accuracy"] == result["test_accuracy"] > 0.2
    assert metrics["num_parameters"] == result["num_parameters"]
    assert {"test/loss", "test/macro_f1", "test/calibration_error"} <= set(metrics)
    root = store.folder / "artifacts" / run.info.run_id / "artifacts" / "test"
    rows = [line.split(",")[1:] for line in (root / "confusion_matrix.csv").read_text().splitlines()[1:]]
    confusion = np.array(rows, dtype=int)
    assert np.trace(confusion) / confusion.sum() == pytest.approx(metrics["test/accuracy"])
    table = json.loads((root / "per_class.json").read_text())
    recalls = [row[table["columns"].index("recall")] for row in table["data"]]
    np.testing.assert_allclose(recalls, np.diagonal(confusion) / confusion.sum(axis=1))


def test_each_answer_on_the_test_split_is_kept_with_its_probability(store, run, result):
    with np.load(store.folder / "artifacts" / run.info.run_id / "artifacts" / "test" / "predictions.npz") as kept:
        label, predicted, probability = (kept[name] for name in ("label", "predicted", "probability"))
    assert (label == predicted).mean() == pytest.approx(result["test_accuracy"])
    assert predicted.dtype == np.uint8
    assert ((probability > 0.1) & (probability <= 1)).all()


def test_the_device_and_the_versions_are_those_really_used(run):
    tags = run.data.tags
    assert (tags["device"], tags["device.name"]) == ("cpu", machine.cpu_name())
    assert tags["version.keras"] == machine.versions()["keras"]
    assert int(tags["device.threads"]) == machine.num_threads()
    assert (tags["commit"], tags["code"]) == (machine.commit(), machine.code_digest(training.CODE))
    assert {name: tags[f"machine.{name}"] for name in machine.facts()} == machine.facts()
    assert re.fullmatch(r"[0-9a-f]{64}", tags["weights.sha256"])
    parts = "2" if machine.num_threads() == 2 else "1"
    assert (tags["device.batch_parts"], tags["device.tf32"], tags["device.deterministic"]) == (
        parts,
        "False",
        "True",
    )


def test_the_data_is_an_input_with_a_digest_over_all_bytes(run):
    (entry,) = run.inputs.dataset_inputs
    splits = data.load("synthetic", data_dir="", validation=Validation(5000), seed=0)
    assert entry.dataset.name == "synthetic"
    assert entry.dataset.digest == splits.manifest["digest"] == run.data.tags["dataset.digest"]
    assert json.loads(entry.dataset.profile)["features_shape"]["test"] == [2000, 28, 28]


def test_the_artifacts_are_there(store, result):
    expected = {
        *("learning_curves.png", "model_summary.txt", "data/manifest.json", "test/per_class.json"),
        *("test/confusion_matrix.png", "test/confusion_matrix.csv"),
        *("test/predictions.png", "test/predictions.npz", "test/confident_mistakes.png"),
    }
    found = store.artifacts(result["run_id"])
    assert expected <= found
    assert len([path for path in found if path.startswith("tensorboard/")]) == 2


def test_system_metrics_are_logged(run):
    assert "system/cpu_utilization_percentage" in run.data.metrics


def test_the_model_is_registered_with_tags_and_both_flavours(store, run, result):
    import mlflow

    assert result["registered"] == "fashion-mnist/1"
    version = store.client.get_model_version("fashion-mnist", "1")
    assert (version.tags["model"], version.tags["dataset"]) == ("lenet", "synthetic")
    assert version.tags["test.accuracy"] == f"{result['test_accuracy']:.4f}"
    with tracked_in(store):
        model = mlflow.models.get_model_info(version.source)
    assert model.signature.outputs.input_names() == ["label", "class_name", "probabilities"]
    assert len(model.metadata["class_names"]) == 10
    assert {"keras", "python_function"} <= set(model.flavors)
    assert version.tags["serving"] == run.data.tags["serving"] == "litert"


def test_the_version_knows_how_far_an_image_is_from_those_that_it_was_trained_on(store, result):
    from fmnist.tracking import versions

    splits = data.load("synthetic", data_dir="", validation=Validation(5000), seed=0)
    with tracked_in(store):
        strangeness = versions.load(versions.find(f"models:/{result['registered']}"), 10).strangeness
    assert (strangeness(splits.validation.images) > 1).mean() == pytest.approx(0.05, abs=0.001)


def test_the_logged_model_is_named_after_the_model_and_has_its_figures_and_parameters(store, run, result):
    model = store.client.get_logged_model(result["model_uri"].removeprefix("models:/"))
    assert (model.name, model.params["recipe.optimizer"], model.params["hyper.dense"]) == ("lenet", "adam", "32")
    figures = {metric.key: metric.value for metric in model.metrics}
    assert figures["test/accuracy"] == run.data.metrics["test/accuracy"]
    assert figures["num_parameters"] == run.data.metrics["num_parameters"]
    assert figures["perf/epoch_seconds_median"] == result["epoch_seconds_median"]
    assert len(store.client.get_metric_history(run.info.run_id, "test/accuracy")) == 1


def test_the_version_has_a_card_with_its_figures_and_pictures_that_are_there(store, run, result):
    card = store.client.get_model_version("fashion-mnist", "1").description
    assert card.startswith(f"**{result['test_accuracy']:.2%} test accuracy** of one seed")
    for words in (
        result["device"],
        "synthetic",
        "models serve -m models:/fashion-mnist/1",
        "adam 0.001, batch 128",
    ):
        assert words in card
    pictures = [dict(parse_qsl(query)) for query in re.findall(r"!\[[^]]+\]\(get-artifact\?(\S+)\)", card)]
    assert len(pictures) == 1
    for picture in pictures:
        assert picture["run_uuid"] == run.info.run_id
        assert picture["path"] in store.artifacts(run.info.run_id)
    assert f"](#/experiments/{store.experiment}/runs/{run.info.run_id})" in card


def test_a_registered_model_gives_the_probabilities_of_the_model_in_memory(new_store, cpu):
    import mlflow

    from fmnist import device
    from fmnist.tracking import models, runs
    from fmnist.tracking import training as log

    store = new_store()
    settings = Train(model="cnn64", hyper="filters=4,8", dataset="synthetic", epochs=1)
    splits = data.load("synthetic", data_dir="", validation=Validation(5000), seed=0)
    with tracked_in(store):
        plan = training.plan(settings)
        with runs.run(settings, "cnn64"):
            trained = fit_and_test(plan, splits, log.log_epoch)
            used = device.Device("cpu", "some CPU", 1, False, {})
            result = log.log_end(trained, plan, splits, used, tensorboard=False)
            assert models.register(result, "fashion-mnist") == "fashion-mnist/1"
            assert models.register(result, "fashion-mnist") == "fashion-mnist/1"  # once is enough
        images = splits.test.images[:200].astype(np.float32)
        loaded = mlflow.keras.load_model("models:/fashion-mnist/1")(images).numpy()
        served = mlflow.pyfunc.load_model("models:/fashion-mnist/1").predict(images)
    np.testing.assert_allclose(loaded, trained.test_probabilities[:200], atol=1e-6)
    served = [answer["probabilities"] for answer in served]
    np.testing.assert_allclose(served, trained.test_probabilities[:200], atol=1e-5)


ONE_AFTER_ANOTHER = """
import runpy, shlex, sys
for words in sys.argv[1:]:
    sys.argv = ["train", *shlex.split(words)]
    runpy.run_module("entry_points.train", run_name="__main__")
"""


def test_a_training_that_was_killed_outright_goes_on_to_the_same_weights(new_store):
    import mlflow

    store = new_store()
    parameters = ["--dataset", "synthetic", "--model", "mlp_dropout", "--augment", "shift", "--epochs", "8"]
    command = [sys.executable, "-m", "entry_points.train", *parameters]
    with subprocess.Popen(
        command, cwd=store.folder, env=store.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if "epoch 3/" in line:
                process.kill()
    (killed,) = store.client.search_runs([store.experiment])
    assert killed.info.status == "RUNNING"  # it had no time to say otherwise
    both = store.run(
        [
            sys.executable,
            "-c",
            ONE_AFTER_ANOTHER,
            f"{shlex.join(parameters)} --resume auto",
            shlex.join(parameters),
        ]
    )
    assert both.returncode == 0, both.stderr
    resumed, whole = map(json.loads, both.stdout.splitlines())
    killed = store.client.get_run(killed.info.run_id)
    assert (killed.info.status, killed.data.tags["resumed_by"]) == ("KILLED", resumed["run_id"])
    assert store.client.get_run(resumed["run_id"]).data.tags["resumed_from"] == killed.info.run_id
    histories = [
        [(metric.step, metric.value) for metric in store.client.get_metric_history(result["run_id"], "val/loss")]
        for result in (resumed, whole)
    ]
    assert histories[0] == histories[1]
    with tracked_in(store):
        left, right = (mlflow.keras.load_model(result["model_uri"]).get_weights() for result in (resumed, whole))
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)
    words = iter(parameters)
    settings = {name.removeprefix("--"): value for name, value in zip(words, words, strict=True)}
    again = store.here("train", **settings, resume=resumed["run_id"])
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: resume: run '{resumed['run_id']}' has no checkpoint")


def test_repeats_are_nested_runs_under_one_that_says_how_far_they_spread(new_store):
    store = new_store()
    arguments = {"model": "mlp", "dataset": "synthetic", "epochs": 2, "repeats": 3, "seed": 4}
    result = result_of(store.here("train", **arguments))
    runs = {run.info.run_id: run for run in store.client.search_runs([store.experiment])}
    parent = runs.pop(result["run_id"])
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {result["run_id"]}
    assert {run.data.params["recipe.seed"] for run in runs.values()} == {"4", "5", "6"}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    values = [run.data.metrics["test/accuracy"] for run in runs.values()]
    metrics = parent.data.metrics
    assert metrics["test_accuracy/mean"] == pytest.approx(np.mean(values))
    assert metrics["test_accuracy/std"] == pytest.approx(np.std(values, ddof=1))
    assert (metrics["test_accuracy/min"], metrics["test_accuracy/max"]) == (min(values), max(values))
    half = 4.303 * np.std(values, ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert metrics["test_accuracy/ci95_high"] == pytest.approx(np.mean(values) + half, abs=1e-4)
    version = store.client.get_model_version("fashion-mnist", "1")
    best = max(runs.values(), key=lambda run: run.data.metrics["val/final_accuracy"])
    assert version.tags["seed"] == best.data.params["recipe.seed"]
    assert parent.info.run_name == "mlp · cpu · seeds 4-6"
    assert {run.info.run_name for run in runs.values()} == {f"mlp · cpu · seed {seed}" for seed in (4, 5, 6)}
    verdict = f"**{np.mean(values):.2%} test accuracy, mean of 3 seeds (95 % interval "
    for text in (version.description, parent.data.tags["mlflow.note.content"]):
        assert text.startswith(verdict)


BREAKS_IN_THE_SECOND_SEED = """
import runpy, os, signal
from fmnist import training
kept = training.fit

def fit(plan, *arguments, **more):
    if plan.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(plan, *arguments, **more)

training.fit = fit
runpy.run_module("entry_points.train", run_name="__main__")
"""


def test_what_failed_after_the_last_epoch_is_finished_once(new_store, monkeypatch):
    from fmnist.tracking import models

    def register(*_, **__):
        raise RuntimeError("the registry is away")

    store = new_store()
    parameters = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "resume": "auto"}
    with monkeypatch.context() as patch:
        patch.setattr(models, "register", register)
        with pytest.raises(RuntimeError, match="the registry is away"):
            store.here("train", **parameters)
    (trained,) = store.client.search_runs([store.experiment])
    assert (trained.info.status, store.client.search_registered_models()) == ("FAILED", [])
    elsewhere = new_store().here("train", **parameters)
    assert "mlp epoch 1/1" in elsewhere.stderr  # what is in one store is nothing to another
    again = store.here("train", **parameters)
    assert "epoch" not in again.stderr  # nothing was trained
    assert result_of(again)["run_id"] == trained.info.run_id
    (version,) = store.client.search_model_versions("name = 'fashion-mnist'")
    assert version.run_id == trained.info.run_id
    assert len(store.client.search_logged_models([store.experiment])) == 1
    anew = result_of(store.here("train", **parameters))
    assert anew["run_id"] != trained.info.run_id  # it was done: nothing is left to go on from


def test_a_seed_that_had_ended_is_not_trained_again(new_store):
    store = new_store()
    parameters = {"dataset": "synthetic", "model": "mlp", "epochs": 1, "repeats": 2, "resume": "auto"}
    words = [text for name, value in parameters.items() for text in (f"--{name}", str(value))]
    killed = store.run([sys.executable, "-c", BREAKS_IN_THE_SECOND_SEED, *words])
    assert killed.returncode == -signal.SIGKILL
    names = {run.info.run_name: run.info.run_id for run in store.client.search_runs([store.experiment])}
    done = store.here("train", **parameters)
    result = result_of(done)
    assert done.stderr.count("mlp epoch 1/1") == 1
    query = f"tags.mlflow.parentRunId = '{result['run_id']}'"
    seeds = store.client.search_runs([store.experiment], query)
    assert {run.data.params["recipe.seed"] for run in seeds} == {"0", "1"}
    assert names["mlp · cpu · seed 0"] in {run.info.run_id for run in seeds}
    assert {run.info.status for run in seeds} == {"FINISHED"}


def test_six_processes_that_open_a_fresh_store_at_once_all_succeed_even_if_a_seventh_is_killed(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    code = """
import os, signal, traceback
import mlflow
from fmnist.tracking import runs

def torn(*uri):
    open(f"{uri[0]}".removeprefix("sqlite:///"), "wb").write(b"SQLite format 3") if uri else None
    os.kill(os.getpid(), signal.SIGKILL)

children = []
for number in range(7):
    children.append(os.fork())
    if not children[-1]:
        if number == 0:
            mlflow.MlflowClient = torn
        try:
            runs.open_store()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout) == [-signal.SIGKILL, *[0] * 6], done.stderr
    store = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    described = yaml.safe_load((ROOT / "mlruns_template" / "experiments.yaml").read_text())["experiments"]
    assert sorted(each.name for each in store.search_experiments()) == sorted(described)


def test_jax_trains_where_tensorflow_is_not_installed_and_its_model_predicts_alike_under_tensorflow(
    new_store, cpu
):
    import mlflow

    store = new_store()
    packages = store.folder / "packages"  # all that is installed, but for TensorFlow
    packages.mkdir()
    for path in Path(np.__file__).parent.parent.iterdir():
        if not path.name.startswith("tensorflow"):
            (packages / path.name).symlink_to(path)
    store.environment["PYTHONPATH"] = f"{packages}{os.pathsep}{ROOT}"
    arguments = ["--backend", "jax", "--dataset", "synthetic", "--model", "mlp_dropout", "--epochs", "2"]
    arguments += ["--augment", "photo"]
    command = [sys.executable, "-S", "-m", "entry_points.train"]
    refused = store.run([*command, "--model", "lenet"])
    assert refused.stderr == "error: backend=tensorflow: it isn't installed; type: pip install '.[cpu]'\n"
    result = result_of(store.run([*command, *arguments]))
    assert 0.6 < result["test_accuracy"] < 0.99
    splits = data.load("synthetic", data_dir="", validation=Validation(5000), seed=0)
    with tracked_in(store):
        model = mlflow.keras.load_model("models:/fashion-mnist/1")
        (stored,) = mlflow.search_runs([store.experiment]).to_dict("records")
    evaluation = evaluate(model.predict(splits.test.images, verbose=0), splits.test.labels)
    assert evaluation.accuracy == stored["metrics.test/accuracy"]
    assert evaluation.loss == pytest.approx(stored["metrics.test/loss"], abs=1e-5)
    assert stored["tags.version.jax"]


def test_preprocess_logs_counts_manifest_and_plots_in_the_run_that_a_person_has_named(new_store):
    store = new_store()
    command = store.command("preprocess", dataset="synthetic", validation="stratified:1000", seed=3)
    result = result_of(store.run([*command, "--run-name", "the-one-42"]))
    run = store.client.get_run(result["run_id"])
    assert run.info.run_name == "the-one-42"
    assert run.data.params == {
        "dataset": "synthetic",
        "data_dir": "''",
        "validation": "stratified:1000",
        "seed": "3",
    }
    assert run.data.metrics == {
        "data/num_train": 11_000,
        "data/num_validation": 1_000,
        "data/num_test": 2_000,
        "data/duplicates_train_validation": 0,
        "data/duplicates_train_test": 0,
        "data/duplicates_validation_test": 0,
    } | {name: value for name, value in run.data.metrics.items() if name.startswith("system/")}
    assert len(run.inputs.dataset_inputs) == 1
    assert {"data/manifest.json", "data/class_balance.png", "data/samples.png"} <= store.artifacts(
        result["run_id"]
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": "lenett"}, "error: unknown model 'lenett'. Did you mean 'lenet'?"),
        ({"colour": "red"}, "error: No such option"),
    ],
)
def test_a_refused_parameter_leaves_a_failed_run_and_one_line(new_store, parameters, message):
    store = new_store()
    done = store.mlflow_run("train", dataset="synthetic", **parameters)
    assert done.returncode != 0
    assert next(line for line in done.stderr.splitlines() if line.startswith("error:")).startswith(message)
    (run,) = store.client.search_runs([store.experiment])
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hyper", "dnse=3"], "error: unknown hyperparameter of lenet 'dnse'. Did you mean 'dense'?"),
        (["--model", "lenett"], "error: unknown model 'lenett'."),
        (["--epoch", "3"], "error: No such option"),
        (["stray"], "error: Got unexpected extra argument"),
        (["--data_dir", "/nowhere"], "error: data_dir: expected a folder"),
        (
            ["--dataset", "synthetic", "--batch_size", "7001"],
            "error: batch_size: expected at most the 7000 images",
        ),
        (
            ["--recipe", "smoothing=0.1"],
            "error: unknown part of a recipe 'smoothing'. Did you mean 'label_smoothing'?",
        ),
        (["--recipe", "norm_rate=2"], "error: recipe: norm_rate: not with adam; type"),
        (
            ["--dataset", "synthetic", "--trainer", "fit", "--recipe", "crop=2;momentum=0.8"],
            "error: trainer=fit: stock Keras doesn't do crop of the recipe; type -P trainer=compiled",
        ),
        (["--dataset", "synthetic", "--validation", "12000"], "error: validation: expected fewer than the 12000"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_heavy_is_imported(new_store, arguments, message):
    store = new_store()
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['train', *{arguments!r}]\n"
        "try:\n    runpy.run_module('entry_points.train', run_name='__main__')\n"
        "finally:\n"
        "    print({'tensorflow', 'keras', 'mlflow', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = store.run([sys.executable, "-c", code])
    assert done.returncode == 2
    assert done.stdout == "set()\n"
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)
    assert store.client.search_runs([store.experiment]) == []


def test_gpu_where_none_is_visible_is_refused_with_what_was_looked_for(new_store):
    if any(path.exists() for path in map(Path, machine.DRIVER_FILES)):
        pytest.skip("this machine has a GPU's driver")
    store = new_store()
    done = store.run([sys.executable, "-m", "entry_points.train", "--device", "gpu"])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "/dev/nvidiactl" in done.stderr
    assert "-P device=cpu" in done.stderr


def test_an_error_within_a_run_leaves_it_failed(new_store):
    store = new_store()
    done = store.here("train", model="mlp", dataset="synthetic", learning_rate="1e12", optimizer="sgd")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: training diverged")
    (run,) = store.client.search_runs([store.experiment])
    assert run.info.status == "FAILED"


def test_a_tracking_store_that_takes_no_run_is_said_in_one_line(new_store):
    store = new_store()
    store.environment["MLFLOW_EXPERIMENT_ID"] = "12345"
    done = store.here("preprocess", dataset="synthetic")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: MLflow at {store.uri} takes no run:")


def test_a_store_that_cannot_be_made_is_said_in_one_line(new_store):
    store = new_store()
    store.environment["MLFLOW_TRACKING_URI"] = "sqlite:////proc/nowhere/mlflow.db"
    done = store.run([sys.executable, "-m", "entry_points.preprocess", "--dataset", "synthetic"])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: MLflow at sqlite:////proc/nowhere/mlflow.db doesn't answer: a lock can't be made"
    )
    assert line.endswith("Check MLFLOW_TRACKING_URI")


@pytest.mark.parametrize(
    ("number", "to_group", "wait_for"),
    [
        (signal.SIGINT, True, "epoch 1/"),  # Ctrl-C in a terminal reaches the launcher and the script
        (signal.SIGTERM, True, "=== Running command"),  # before the script has come to its run
        (signal.SIGTERM, False, "epoch 1/"),  # to the script alone, as a scheduler does
        (signal.SIGHUP, False, "epoch 1/"),  # a terminal that is closed
    ],
)
def test_an_interrupted_run_is_killed(new_store, number, to_group, wait_for):
    store = new_store()
    if to_group:
        command = store.command("train", dataset="synthetic", epochs=5000)
    else:
        command = [sys.executable, "-m", "entry_points.train", "--dataset", "synthetic", "--epochs", "5000"]
    with subprocess.Popen(
        command, cwd=store.folder, env=store.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stderr:
            if wait_for in line:
                break
        if "Running command" in wait_for:
            wait_until_caught(number, process)
        os.killpg(process.pid, number) if to_group else os.kill(process.pid, number)
        process.stderr.read()
    assert process.returncode != 0
    assert status_at_last(store) == "KILLED"
    if not to_group:
        assert process.returncode == 128 + number


def wait_until_caught(number: int, process: subprocess.Popen[str]) -> None:
    """Waits until a script that `mlflow run` started catches a signal: then it begins to import."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(OSError):  # it has ended
                status = Path(f"/proc/{child.pid}/status").read_text()
                caught = re.search(r"^Name:\s*python.*^SigCgt:\s*(\w+)$", status, re.DOTALL | re.MULTILINE)
                if caught and int(caught[1], 16) >> (number - 1) & 1:
                    return
        time.sleep(0.01)
    raise AssertionError("no script catches the signal")


def status_at_last(store: Store) -> str:
    """The status of the only run, once it is KILLED or has had its time to become so."""
    for _ in range(300):
        (run,) = store.client.search_runs([store.experiment])
        if run.info.status == "KILLED":
            time.sleep(2)  # the launcher may still write over it
            (run,) = store.client.search_runs([store.experiment])
            if run.info.status == "KILLED":
                break
        time.sleep(0.2)
    return run.info.status
