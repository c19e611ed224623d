"""What a logged model version answers: over HTTP by MLflow, as a Python function, and as a Keras model."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from socket import socket
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

NAMES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
ONE = IMAGES[:1].tolist()


def small_model(precision: str = "float32") -> Any:
    from fmnist.models import MODELS

    model = MODELS["lenet"]
    return model.build(model.hyperparameters("filters=4,8;dense=16"), precision=precision, seed=0)


@pytest.fixture(scope="module")
def log(new_store, cpu):
    """Logs a model to a fresh store."""
    import mlflow

    from fmnist import serving

    store = new_store()
    mlflow.set_tracking_uri(store.uri)

    def log(model: Any) -> Any:
        with mlflow.start_run(experiment_id=store.experiment):
            return serving.log_model(
                model, name="model", class_names=NAMES, check_images=IMAGES, params={}, metadata={}
            )

    yield log
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def logged(log):
    return log(small_model())


@pytest.fixture(scope="module")
def folder(logged, tmp_path_factory) -> Path:
    """The version as it lies in the registry's artifact store."""
    import mlflow

    return Path(mlflow.artifacts.download_artifacts(logged.model_uri, dst_path=str(tmp_path_factory.mktemp("m"))))


@pytest.fixture(scope="module")
def expected(logged) -> np.ndarray:
    """What Keras makes of the images."""
    import mlflow

    return np.asarray(mlflow.keras.load_model(logged.model_uri)(IMAGES.astype(np.float32), training=False))


@pytest.fixture(scope="module")
def port(folder) -> Iterator[int]:
    """A server, as a user starts it."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=folder,  # where nothing of the project can be imported by chance
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while process.poll() is None:
            try:
                connection = HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/ping")
                connection.getresponse().read()
                connection.close()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def ask(port: int, body: Any, content_type: str = "application/json") -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port)
    text = body if isinstance(body, str) else json.dumps(body)
    connection.request("POST", "/invocations", text.encode(), {"Content-Type": content_type})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


def probabilities_of(answers: list[dict[str, Any]]) -> np.ndarray:
    return np.array([answer["probabilities"] for answer in answers])


# Over HTTP:


@pytest.mark.parametrize("field", ["inputs", "instances"])
@pytest.mark.parametrize("kind", [int, float])
def test_the_server_answers_each_image_with_label_name_and_probabilities(port, expected, field, kind):
    status, content = ask(port, {field: IMAGES[:11].astype(kind).tolist()})
    assert status == 200
    answers = content["predictions"]
    np.testing.assert_allclose(probabilities_of(answers), expected[:11], atol=1e-5)
    assert [answer["label"] for answer in answers] == expected[:11].argmax(axis=1).tolist()
    assert [answer["class_name"] for answer in answers] == [NAMES[answer["label"]] for answer in answers]
    assert not any("warning" in answer for answer in answers)


def test_fractions_of_pixels_are_not_cut_off(port, expected):
    status, content = ask(port, {"inputs": (IMAGES[:1] * 0.999).tolist()})
    assert status == 200
    difference = np.abs(probabilities_of(content["predictions"]) - expected[:1]).max()
    assert 0 < difference < 0.01


def test_a_table_of_pixels_is_answered_too(port, expected):
    header = ",".join(f"pixel{number}" for number in range(784))
    rows = "\n".join(",".join(map(str, row)) for row in IMAGES[:3].reshape(3, 784).tolist())
    status, content = ask(port, f"{header}\n{rows}\n", "text/csv")
    assert status == 200
    np.testing.assert_allclose(probabilities_of(content["predictions"]), expected[:3], atol=1e-5)


def test_images_that_seem_to_be_scaled_already_are_answered_with_a_warning(port):
    status, content = ask(port, {"inputs": (IMAGES[:2] / 255).tolist()})
    assert status == 200
    assert all("0 to 255" in answer["warning"] for answer in content["predictions"])


def with_one(value: object) -> list[Any]:
    image = IMAGES[:1].tolist()
    image[0][3][5] = value
    return image


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": with_one(float("nan"))}, "received NaN"),
        ({"inputs": with_one(float("inf"))}, "values from 0 to inf"),
        ({"instances": with_one(-1)}, "values from -1 to"),
        ({"inputs": with_one(256)}, "values from 0 to 256"),
        ({"inputs": with_one(10**400)}, "received"),
        ({"inputs": with_one("12")}, "received text"),
        ({"inputs": with_one(None)}, "null"),
        ({"inputs": IMAGES[0].tolist()}, r"received shape \(28, 28\)"),
        ({"inputs": IMAGES[:1, :, :27].tolist()}, r"received shape \(1, 28, 27\)"),
        ({"inputs": IMAGES[:1, :, :, None].tolist()}, r"received shape \(1, 28, 28, 1\)"),
        ({"inputs": [[[1, 2], [3]]]}, "inhomogeneous"),
        ({"inputs": []}, "from 1 to 1,000 images in a request, received none"),
        ({"inputs": None}, "null"),
        ({"inputs": [0] * 1001}, "shape"),
        ({"inputs": (IMAGES[:1] // 255).tolist() * 1001}, "from 1 to 1,000 images in a request, received 1,001"),
        ({"inputs": "a shirt"}, "received text"),
        ({"inputs": "/etc/hostname"}, "received text"),
        ({"inputs": {"file": "/etc/hostname"}}, "received"),
        ({"dataframe_split": {"columns": ["a"], "data": [["/etc/hostname"]]}}, "received text"),
        ({"images": ONE}, "exactly one of the input fields"),
        ({}, "exactly one of the input fields"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_server_cannot_answer_it_refuses_in_a_sentence_and_goes_on(port, body, said):
    import re

    status, content = ask(port, body)
    assert status == 400
    assert re.search(said, content["message"]), content["message"]
    assert "[[" not in content["message"]
    assert "stack_trace" not in content
    if "expected" in content["message"]:
        assert len(content["message"]) < 120
    assert ask(port, {"inputs": ONE})[0] == 200


def test_eight_clients_at_once_get_each_their_own_answers(port, expected):
    def client(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(25):
            start, count = draw.randrange(280), draw.randrange(1, 20)
            status, content = ask(port, {"inputs": IMAGES[start : start + count].tolist()})
            assert status == 200
            answers = probabilities_of(content["predictions"])
            np.testing.assert_allclose(answers, expected[start : start + count], atol=1e-5)

    with ThreadPoolExecutor(8) as clients:
        for done in [clients.submit(client, seed) for seed in range(8)]:
            done.result()


# As a Python function, and as a Keras model:


def test_a_version_is_both_a_keras_model_and_a_python_function(logged, expected):
    import mlflow

    version = mlflow.register_model(logged.model_uri, "both")
    mlflow.MlflowClient().set_registered_model_alias("both", "champion", version.version)
    served = mlflow.pyfunc.load_model("models:/both@champion").predict(IMAGES)
    assert logged.tags["serving"] == "litert"
    np.testing.assert_allclose(probabilities_of(served), expected, atol=1e-5)


def test_tables_of_images_are_answered_as_spark_hands_them_over(logged, expected):
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(logged.model_uri)
    flat = pd.DataFrame({"pixels": list(IMAGES[:9].reshape(9, 784))})
    nested = pd.DataFrame({"pixels": IMAGES[:9].tolist()})
    for table in (flat, nested):
        np.testing.assert_allclose(probabilities_of(model.predict(table)), expected[:9], atol=1e-5)


def test_who_loads_a_version_may_raise_the_number_of_images(logged):
    import mlflow

    model = mlflow.pyfunc.load_model(logged.model_uri, model_config={"max_images": 1200})
    assert len(model.predict(np.tile(IMAGES, (4, 1, 1)))) == 1200


def test_a_model_trained_in_bfloat16_is_saved_as_it_computes_in_float32(log):
    import mlflow

    logged = log(small_model("bfloat16"))
    keras_model = mlflow.keras.load_model(logged.model_uri)
    served = mlflow.pyfunc.load_model(logged.model_uri).predict(IMAGES)
    assert logged.tags["serving"] == "litert"
    assert {layer.compute_dtype for layer in keras_model.layers[1:]} == {"float32"}
    np.testing.assert_allclose(probabilities_of(served), keras_model(IMAGES.astype(np.float32)), atol=1e-5)
    assert 1e-6 < float(logged.tags["serving.bfloat16_difference"]) < 0.05


def test_a_model_in_bfloat16_that_looks_at_several_views_is_saved_in_float32(cpu):
    from fmnist.models import looking
    from fmnist.serving.conversion import as_float32

    saved = as_float32(looking(small_model("bfloat16"), "flip_shift"))
    pixels = IMAGES.astype(np.float32)
    expected = looking(as_float32(small_model("bfloat16")), "flip_shift")(pixels)
    np.testing.assert_allclose(saved(pixels), expected, atol=1e-6)


def test_the_environment_to_serve_a_version_has_no_tensorflow(folder):
    required = {line.split("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    assert {"mlflow-skinny", "numpy", "ai-edge-litert"} <= required
    assert not required & {"mlflow", "keras", "tensorflow", "tensorflow-cpu", "jax", "fmnist"}


def test_the_loader_needs_nothing_of_the_project_nor_tensorflow(folder, expected, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    code = f"""
import sys
for name in ("fmnist", "tensorflow", "keras", "jax", "pickle5"):
    sys.modules[name] = None
import mlflow, numpy
answers = mlflow.pyfunc.load_model({str(folder)!r}).predict(numpy.load("images.npy"))
print([answer["probabilities"] for answer in answers])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=os.environ
    )
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-5)


# Where LiteRT can't serve:


def test_a_model_that_cannot_be_converted_is_served_by_keras_and_says_why(log, port):
    import keras
    import mlflow

    pixels = keras.Input((28, 28))
    flat = keras.layers.Flatten()(keras.layers.Rescaling(1 / 512)(pixels))
    outputs = keras.layers.Dense(10, "softmax")(keras.ops.erfinv(flat))  # LiteRT has no such operation
    logged = log(keras.Model(pixels, outputs))
    assert logged.tags["serving"] == "keras"
    assert "can't convert" in logged.tags["serving.reason"]
    assert "\n" not in logged.tags["serving.reason"]
    expected = np.asarray(mlflow.keras.load_model(logged.model_uri)(IMAGES.astype(np.float32)))
    served = mlflow.pyfunc.load_model(logged.model_uri).predict(IMAGES)
    np.testing.assert_allclose(probabilities_of(served), expected, atol=1e-5)


def test_a_conversion_that_differs_from_keras_is_not_kept(log, monkeypatch, tmp_path):
    import mlflow

    from fmnist.serving import flavor

    monkeypatch.setattr(flavor, "TOLERANCE", -1.0)
    logged = log(small_model())
    assert logged.tags["serving"] == "keras"
    assert "differ from Keras's by" in logged.tags["serving.reason"]
    path = mlflow.artifacts.download_artifacts(logged.model_uri, dst_path=str(tmp_path))
    assert not list(Path(path).rglob("*.tflite"))
    assert "tensorflow" in (Path(path) / "requirements.txt").read_text()


def test_jax_without_tensorflow_is_served_by_keras(new_store, tmp_path):
    pytest.importorskip("jax")
    store = new_store()
    code = """
import os
from importlib.machinery import PathFinder
os.environ["KERAS_BACKEND"] = "jax"
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest)
import json, mlflow, numpy as np
from fmnist import serving
from fmnist.models import MODELS
images = np.random.default_rng(0).integers(0, 256, (16, 28, 28), dtype=np.uint8)
model = MODELS["mlp"].build(MODELS["mlp"].hyperparameters("dense=8"), precision="float32", seed=0)
with mlflow.start_run():
    logged = serving.log_model(
        model, name="model", class_names=tuple("abcdefghij"), check_images=images, params={}, metadata={}
    )
    served = mlflow.pyfunc.load_model(logged.model_uri).predict(images)
difference = np.abs([answer["probabilities"] for answer in served] - np.asarray(model(images.astype("float32"))))
print(json.dumps([logged.tags, float(difference.max())]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=store.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tags, difference = json.loads(done.stdout.splitlines()[-1])
    assert tags == {"serving": "keras", "serving.reason": "TensorFlow, which converts to LiteRT, isn't installed"}
    assert difference < 1e-5


# What comes from elsewhere:


def test_code_in_a_model_from_elsewhere_is_not_run(cpu, tmp_path):
    import keras
    import mlflow

    from fmnist.serving import loader

    pixels = keras.Input((28, 28))
    model = keras.Model(pixels, keras.layers.Lambda(lambda each: each[:, 0, :10])(pixels))
    mlflow.keras.save_model(model, str(tmp_path / "model"), pip_requirements=["keras"])
    about = {"class_names": NAMES, "image_shape": (28, 28), "keras_backend": "tensorflow"}
    (tmp_path / "model" / "data" / loader.ABOUT_FILE).write_text(json.dumps(about))
    with pytest.raises(ValueError, match="Lambda"):
        loader._load_pyfunc(str(tmp_path / "model" / "data"))
    with pytest.raises(ValueError, match="Lambda"):
        mlflow.keras.load_model(str(tmp_path / "model"))


def test_the_loader_reads_no_pickle():
    code = (ROOT / "fmnist" / "serving" / "loader.py").read_text()
    assert not any(word in code for word in ("pickle", "joblib", "eval(", "exec("))
