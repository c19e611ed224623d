"""Seeds that are trained at once with JAX: each comes to what it comes to alone, to rounding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fmnist import together

ROOT = Path(__file__).parent.parent
pytest.importorskip("jax", reason="the extra jax is not installed")

# The backend is one process's for good, so each case is a process: several seeds at once, then each alone.
BOTH = """
import dataclasses, json, sys
import numpy as np
from fmnist import data, device, together, training
from fmnist.data import Split, Splits
from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.settings import Train, Validation

used = device.select("cpu", "jax")
if sys.argv[2:]:  # as one loop by XLA, as on a GPU
    import jax

    jax.default_backend = lambda: "gpu"
whole = data.load("synthetic", data_dir="", validation=Validation(1000), seed=0)
train, other = (Split(each.images[:n], each.labels[:n]) for each, n in ((whole.train, 75), (whole.test, 40)))
splits = Splits(train, other, other, whole.class_names, whole.manifest)
settings = parse(Train, json.loads(sys.argv[1]) | {"backend": "jax"})
plan = training.settle(training.plan(settings), used)
plans = [dataclasses.replace(plan, seed=seed) for seed in (3, 4, 5)]
kept = {}

def keep(index, state):
    kept[index, len(state.history)] = state

try:
    clock = training.Clock("cpu")  # what is compiled for it before the first epoch must leave no trace
    fitted = together.fit(plans, splits, lambda *_: None, on_checkpoint=keep, clock=clock)
    assert clock.prepare_seconds > 0 and clock.compile_seconds > 0
except FmnistError as error:
    sys.exit(str(error))
starts = [kept[index, 1] for index in range(len(plans))]
resumed = together.fit(plans, splits, lambda *_: None, starts=starts)
pairs, figures = [], ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
for index, each in enumerate(plans):
    states = []
    alone = training.fit(each, splits, lambda _: None, on_checkpoint=states.append)
    for found in (fitted[index], resumed[index]):
        pairs += zip(found.model.get_weights(), alone.model.get_weights(), strict=True)
        pairs.append([found.predict(other.images), alone.predict(other.images)])
        pairs.append([found.predict_one_view(other.images), alone.predict_one_view(other.images)])
        pairs.append([[[getattr(e, f) for f in figures] for e in x.history] for x in (found, alone)])
        pairs.append([found.kept.number, alone.kept.number])
    for state in states:
        other_state = kept[index, len(state.history)]
        pairs += zip(other_state.state, state.state, strict=True)
weights = [each.model.get_weights()[0] for each in fitted]
print(json.dumps({
    "worst": max(float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)), initial=0)) for a, b in pairs),
    "epochs": [len(each.history) for each in fitted],
    "apart": float(min(np.abs(weights[0] - each).max() for each in weights[1:])),
    "groups": [len(each) for each in together.groups(plan, splits, plans)],
}))
"""


def both(*as_on_a_gpu: str, **settings: object) -> subprocess.CompletedProcess[str]:
    texts = json.dumps({name: str(value) for name, value in settings.items()})
    command = [sys.executable, "-c", BOTH, texts, *as_on_a_gpu]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


EVERYTHING = (
    "schedule=one_cycle;warmup=0.2;weight_decay=0.001;norm_rate=8;label_smoothing=0.1;averaging=lookahead;"
    "average_every=2;flip=alternating;crop=2;erase=0.5;mixup=0.4;cutmix=1;small_side=14;views=flip;"
    "muon=0.02;norm_parts=2"
)


@pytest.mark.parametrize(
    ("device", "settings"),
    [
        ((), {"model": "mlp_dropout", "augment": "shift+erase", "recipe": "flip=random;averaging=ema"}),
        (("gpu",), {"model": "mlp_dropout", "augment": "erase", "recipe": "averaging=lookahead;average_every=2"}),
        ((), {"model": "resnet", "hyper": "filters=4,8;blocks=1", "recipe": EVERYTHING, "learning_rate": 0.02}),
    ],
    ids=["mlp_dropout", "as on a gpu", "resnet"],
)
def test_each_seed_comes_to_what_it_comes_to_alone_also_when_gone_on_with(device, settings):
    done = both(*device, **settings, batch_size=20, epochs=3)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["worst"] < 2e-4, found
    assert found["apart"] > 1e-2
    assert found["epochs"] == [3, 3, 3]
    assert found["groups"] == [3]


def test_a_seed_that_has_lost_its_patience_keeps_its_best_weights_while_others_go_on():
    done = both(model="mlp", batch_size=20, epochs=40, learning_rate=0.05, patience=2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["worst"] < 2e-3, found
    assert len(set(found["epochs"])) > 1


def test_a_training_that_diverges_names_its_seed():
    done = both(model="mlp", optimizer="sgd", learning_rate=1e12, batch_size=20, epochs=5)
    assert "training diverged in epoch" in done.stderr
    assert "of seed 3" in done.stderr


@pytest.mark.parametrize(
    ("count", "bytes_each", "free", "sizes"),
    [
        (16, 10, 10_000, [16]),
        (16, 10, 100, [8, 8]),  # a fifth is left
        (16, 10, 90, [6, 5, 5]),
        (3, 1000, 10, [1, 1, 1]),  # less than one takes: then we shall see
        (1, 10, 10_000, [1]),
    ],
)
def test_groups_are_as_few_as_fit_and_as_alike_as_can_be(count, bytes_each, free, sizes):
    assert together.group_sizes(count, bytes_each, free) == sizes


def test_repeats_train_at_once_and_are_runs_with_the_figures_of_their_own(new_store):
    store = new_store()
    same = {"dataset": "synthetic", "model": "mlp", "backend": "jax", "epochs": 2, "registered_model": "none"}
    done = store.mlflow_run("train", **same, seed=4, repeats=3)
    assert done.returncode == 0, done.stderr
    all_three = json.loads(done.stdout.splitlines()[-1])
    assert all_three["seeds"] == [4, 5, 6]
    nested = store.client.search_runs([store.experiment], f"tags.`mlflow.parentRunId` = '{all_three['run_id']}'")
    by_seed = {run.data.params["recipe.seed"]: run for run in nested}
    assert sorted(by_seed) == ["4", "5", "6"]
    assert {run.info.status for run in nested} == {"FINISHED"}
    assert {run.data.tags["seeds_at_once"] for run in nested} == {"3"}
    steps = [store.client.get_metric_history(run.info.run_id, "perf/epoch_seconds") for run in nested]
    assert len({tuple(each.value for each in history) for history in steps}) == 1  # the whole call's
    done = store.mlflow_run("train", **same, seed=5)
    assert done.returncode == 0, done.stderr
    alone = store.client.get_run(json.loads(done.stdout.splitlines()[-1])["run_id"]).data
    assert alone.tags["seeds_at_once"] == "1"
    for name in ("train/loss", "val/accuracy", "test/accuracy", "test/loss"):
        assert by_seed["5"].data.metrics[name] == pytest.approx(alone.metrics[name], abs=2e-3)
