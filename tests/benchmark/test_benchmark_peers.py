"""PyTorch as a row of the benchmark: refused where it isn't there, and else the same model, trained alike."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from made import made_row

from fmnist import data, models
from fmnist import engine as engines
from fmnist.benchmark import grid as grids
from fmnist.benchmark import ratios
from fmnist.errors import FmnistError
from fmnist.models import MODELS
from fmnist.options import parse
from fmnist.recipe import Recipe
from fmnist.settings import PEERS, Benchmark, Train, Validation


@pytest.fixture
def torch(cpu):
    """PyTorch beside TensorFlow, in this process."""
    pytest.importorskip("torch", reason="the extra peers is not installed")
    from fmnist.engine import torch

    return torch


@pytest.fixture(scope="module")
def splits():
    return data.load("synthetic", data_dir="", validation=Validation(1), seed=0)


def test_where_pytorch_is_not_installed_it_is_refused_at_once_in_one_line(tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.modules['torch'] = None\n"
        "sys.argv = ['benchmark', '--dataset', 'synthetic', '--trainers', 'compiled,torch_compile']\n"
        "try:\n    runpy.run_module('entry_points.benchmark', run_name='__main__')\n"
        "finally:\n    print({'tensorflow', 'keras', 'mlflow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert done.stderr.strip() == ("error: trainers=torch: PyTorch isn't installed; type: pip install '.[peers]'")


@pytest.mark.parametrize("trainer", PEERS)
def test_pytorch_is_for_a_benchmark_alone(trainer):
    assert parse(Benchmark, {"trainers": trainer}).trainers == (trainer,)
    with pytest.raises(FmnistError, match=f"unknown trainer '{trainer}'"):
        parse(Train, {"trainer": trainer})


def test_pytorch_is_measured_once_whatever_keras_computes_with(splits, monkeypatch):
    monkeypatch.setattr(grids, "refuse_missing", lambda *_: None)
    texts = {"dataset": "synthetic", "models": "mlp", "devices": "cpu", "trainers": "compiled,torch,torch_compile"}
    cells = grids.grid(parse(Benchmark, texts | {"backends": "tensorflow,jax"}), splits).cells
    assert {(cell.model, cell.backend, cell.trainer) for cell in cells} == {
        *(("op", backend, "none") for backend in ("tensorflow", "torch", "jax")),
        *(("mlp", backend, "compiled") for backend in ("tensorflow", "jax")),
        *(("mlp", "torch", trainer) for trainer in PEERS),
    }
    assert len(cells) == 7


def test_the_compiled_trainer_stands_beside_pytorch_and_torch_compile():
    rows = [
        made_row(),
        made_row(trainer="torch", backend="torch", factor=3.0),
        made_row(trainer="torch_compile", backend="torch", factor=2.0),
    ]
    found = ratios.ratios(rows)
    assert [(each.row, each.label, each.times_as_fast.median) for each in found] == [
        (rows[0], "torch", 3),
        (rows[0], "torch_compile", 2),
    ]


def pixels(count=6):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)


def built(hidden):
    """A model of these hidden layers whose weights, statistics too, are not those that are there at first."""
    random = np.random.default_rng(1)
    model = models.Model("tried", lambda: hidden, models.Recipe("sgd", 0.01, 16, 1), {}).build(
        {}, precision="float32", seed=0
    )
    for layer in model.layers:
        layer.set_weights([each + random.uniform(0, 0.1, each.shape) for each in layer.get_weights()])
    return model


def check_same(torch, model):
    """That PyTorch's network answers as Keras's, and has as many parameters."""
    network = torch.Network(model).eval()
    with torch.torch.inference_mode():
        answers = network(torch.torch.tensor(pixels())).softmax(1).numpy()
    np.testing.assert_allclose(answers, model(pixels().astype(np.float32), training=False), atol=2e-6)
    values = [each for name, each in network.state_dict().items() if "num_batches" not in name]
    assert sum(each.numel() for each in values) == model.count_params()


@pytest.mark.parametrize("name", ["mlp", "mlp_dropout", "lenet", "alexnet", "cnn64"])
def test_a_model_is_the_same_in_pytorch(torch, name):
    check_same(torch, MODELS[name].build(MODELS[name].scaled(0.5), precision="float32", seed=0))


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "elu", "gelu", "silu"])
@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions_and_pooling_are_padded_and_normalized_as_keras_does(torch, activation, kernel, strides):
    from keras import layers

    hidden = [
        layers.Conv2D(4, kernel, strides, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.Activation(activation),
        layers.AveragePooling2D(3, 2, padding="same"),
        layers.Conv2D(4, kernel, groups=2, dilation_rate=2, activation=activation),
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.Flatten(),
        layers.Dense(5, activation),
        layers.BatchNormalization(),
    ]
    check_same(torch, built(hidden))


def test_what_has_no_translation_is_refused_by_name_in_one_line(torch):
    from keras import layers, optimizers

    class Own(layers.Dense):
        pass

    flat = layers.Flatten()
    for hidden, named in [
        ([flat, Own(3, name="mine")], r"layer mine \(Own, linear\)"),
        ([flat, layers.Dense(3, "softmax", name="soft")], r"layer soft \(Dense, softmax\)"),
        ([layers.Dense(3, name="of_places"), flat], r"layer of_places \(Dense"),
        ([layers.MaxPooling2D(4, 1, padding="same", name="uneven"), flat], r"layer uneven \(MaxPooling2D"),
        ([flat, layers.BatchNormalization(scale=False, name="half")], r"layer half \(BatchNormalization"),
    ]:
        with pytest.raises(
            FmnistError, match=rf"^trainers=torch: {named}.* has no translation to PyTorch; leave .*$"
        ):
            torch.Network(built(hidden))
    network = torch.Network(built([flat]))
    for optimizer in (optimizers.RMSprop(), optimizers.Adam(clipnorm=1.0)):
        with pytest.raises(FmnistError, match=r"^trainers=torch: .*; leave torch out of trainers$"):
            torch.optimizer_of(optimizer, network)


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [("sgd", 0.1), ("momentum", 0.01), ("adam", 1e-3), ("adamw", 1e-3)]
)
def test_pytorch_trains_to_the_same_answers_as_keras(torch, splits, optimizer, learning_rate):
    """Over epochs of one batch, whose order is then nothing but rounding."""
    answers = []
    for trainer, backend in (("compiled", "tensorflow"), ("torch", "torch")):
        model = MODELS["lenet"].build(MODELS["lenet"].scaled(1.0), precision="float32", seed=0)
        engine = engines.load(
            trainer,
            backend,
            model,
            recipe=Recipe(optimizer, learning_rate, 64, 4),
            augment=(),
            batch_parts=1,
            images=splits.train.images[:64],
            labels=splits.train.labels[:64],
        )
        passes = [engine.train_epoch(0, epoch)[:2] for epoch in range(4)]
        answers.append((passes, engine.predict(splits.train.images[:64])))
    (keras_passes, keras_answers), (passes, own_answers) = answers
    np.testing.assert_allclose(passes, keras_passes, rtol=1e-3)
    np.testing.assert_allclose(own_answers, keras_answers, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # PyTorch's own
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled:UserWarning")  # as it is meant to be
def test_where_there_is_no_compiler_the_reason_says_what_to_install(torch, splits):
    model = MODELS["mlp"].build(MODELS["mlp"].scaled(0.1), precision="float32", seed=0)
    data = {"images": splits.train.images[:8], "labels": splits.train.labels[:8]}
    options = {"recipe": Recipe("sgd", 0.01, 8, 1), "augment": (), "batch_parts": 1}
    engine = engines.load("torch_compile", "torch", model, **options, **data)
    with (
        torch.torch._inductor.config.patch({"cpp.cxx": (None, "/no/compiler")}),
        pytest.raises(
            FmnistError, match=r"^trainers=torch_compile: .*No working C\+\+ compiler.*g\+\+ python3-dev$"
        ),
    ):
        engine.train_epoch(0, 0)


def test_bfloat16_is_for_the_hidden_layers(torch):
    network = torch.Network(MODELS["lenet"].build(MODELS["lenet"].scaled(1.0), precision="bfloat16", seed=0))
    kinds = {}
    for name in ("hidden", "logits"):
        getattr(network, name).register_forward_hook(lambda *each, name=name: kinds.update({name: each[2].dtype}))
    network(torch.torch.tensor(pixels()))
    assert kinds == {"hidden": torch.torch.bfloat16, "logits": torch.torch.float32}


def test_a_benchmark_has_rows_of_pytorch_and_of_torch_compile(new_store):
    pytest.importorskip("torch", reason="the extra peers is not installed")
    store = new_store()
    small = {"models": "mlp", "dataset": "synthetic", "images": 500, "devices": "cpu", "epochs": 2, "warmup": 1}
    done = store.mlflow_run("benchmark", trainers="compiled,torch,torch_compile", rounds=1, **small)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["measured"], result["skipped"], result["failed"]) == (5, 0, 0)
    assert [(each["cell"].split(", ")[2], each["as"].split(", ")[2]) for each in result["times_as_fast"]] == [
        ("compiled", "torch"),
        ("compiled", "torch_compile"),
    ]
    runs = store.client.search_runs(
        [store.experiment], f"tags.mlflow.parentRunId = '{result['run_id']}' and params.trainer LIKE 'torch%'"
    )
    assert len(runs) == 2
    for run in runs:
        assert run.data.tags["version.torch"]
        assert {"epoch_seconds_median", "latency_seconds_median"} <= set(run.data.metrics)
        assert run.data.metrics["num_parameters"] == 266_610
    report = store.folder / "artifacts" / result["run_id"] / "artifacts" / "benchmark.json"
    assert all(row["share_of_matmul"] for row in json.loads(report.read_text())["rows"] if row["model"] == "mlp")
