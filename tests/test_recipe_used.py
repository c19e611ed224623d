"""What a recipe is typed as, searched, done again, and served."""

import dataclasses
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from conftest import Store, tracked_in

from fmnist import arguments, models, training
from fmnist.errors import FmnistError
from fmnist.models import MODELS
from fmnist.options import parse
from fmnist.recipe import EXTRA_SPACE, EXTRAS, REFINES, resolve
from fmnist.settings import Reproduce, Train, Tune
from fmnist.space import Choice, Span
from fmnist.tuning import candidates, trials, verdict

MORE = "schedule=cosine;warmup=0.1;weight_decay=1e-05;averaging=ema;crop=2;mixup=0.5;views=flip"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smoothing=0.1", "unknown part of a recipe 'smoothing'. Did you mean 'label_smoothing'?"),
        ("schedule=one_cycel", "unknown schedule 'one_cycel'. Did you mean 'one_cycle'?"),
        ("label_smoothing=1", "recipe: label_smoothing: expected number from 0 to 0.95; received '1'"),
        ("erase=nan", "recipe: erase: expected number from 0 to 1; received 'nan'"),
        ("crop=1.5", "recipe: crop: expected whole number from 0 to 8; received '1.5'"),
        ("norm_parts=0", "recipe: norm_parts: expected whole number from 1 to 16; received '0'"),
        ("average_every=0", "recipe: average_every: expected whole number from 1 to 1000; received '0'"),
        ("small_side", "recipe: small_side: expected whole number from 0 to 27; received ''"),
        ("bias_rate=2", "recipe: bias_rate: not with adam; type -P optimizer=momentum or leave it out"),
        ("muon=0.1", "recipe: muon: not with adam; type -P optimizer=momentum or leave it out"),
        ("warmup=0.1", "recipe: warmup: not with schedule=constant; name another schedule or leave it out"),
        ("average_every=5", "recipe: average_every: not with averaging=none; name another averaging or leave"),
        (
            "small_epochs=0.3",
            "recipe: small_epochs: not with small_side=0; name another small_side or leave it out",
        ),
        ("epochs=3", "unknown part of a recipe 'epochs'"),
    ],
)
def test_what_a_recipe_can_not_be_is_refused_in_one_line(text, message):
    with pytest.raises(FmnistError) as caught:
        resolve(MODELS["lenet"].recipe, text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_is_typed_goes_before_what_the_model_has_and_the_rest_stays():
    own = MODELS["airbench"].recipe
    found = training.plan(Train(model="airbench", recipe="label_smoothing=0; views=none")).recipe
    assert found == dataclasses.replace(own, label_smoothing=0.0, views="none")
    assert resolve(own, optimizer="adam") == dataclasses.replace(own, optimizer="adam", norm_rate=1.0)
    off = dataclasses.replace(own, averaging="none", average_decay=0.95, average_every=1)
    assert resolve(own, "averaging=none") == off


@pytest.mark.parametrize("model", MODELS)
def test_what_a_model_has_of_a_recipe_is_written_as_what_is_typed_for_it(model):
    """Else a run and its reproduction would not be of one recipe."""
    own = MODELS[model].recipe
    assert str(resolve(own, arguments.text(own.extras))) == str(own)


def test_every_part_of_a_recipe_can_be_searched_within_what_it_may_be():
    assert EXTRA_SPACE.keys() == EXTRAS.keys()
    for name, dimension in EXTRA_SPACE.items():
        values = dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)
        for value in values:
            other = {"averaging": ";averaging=ema", "small_side": ";small_side=14"}.get(REFINES.get(name, ""), "")
            resolve(MODELS["resnet"].recipe, f"{name}={value}{other}")


def test_a_search_varies_what_its_space_names_of_a_recipe_and_nothing_else_of_it():
    search = trials.plan(Tune(model="resnet", space="schedule=one_cycle|cosine, label_smoothing=0.0..0.2"))
    assert search.space.keys() - MODELS["resnet"].space.keys() == {"schedule", "label_smoothing"}
    assert search.space["schedule"] == Choice(("one_cycle", "cosine"))
    assert search.space["label_smoothing"] == Span(0.0, 0.2)
    assert "label_smoothing=0.0..0.2" in ", ".join(f"{name}={each}" for name, each in search.space.items())
    found = trials.plan_at(search.base, {"schedule": "cosine", "label_smoothing": 0.15, "learning_rate": 0.1})
    own = MODELS["resnet"].recipe
    assert found.recipe == dataclasses.replace(own, schedule="cosine", label_smoothing=0.15, learning_rate=0.1)
    with pytest.raises(FmnistError, match=r"space: label_smoothing: expected a range .* within 0\.0\.\.0\.4"):
        trials.plan(Tune(space="label_smoothing=0..0.9"))


def test_a_name_of_the_models_own_is_not_taken_for_that_of_a_recipe():
    base = dataclasses.replace(training.plan(Train(model="mlp")), hyperparameters={"momentum": 0.5})
    assert trials.plan_at(base, {"momentum": 0.7}).recipe == base.recipe


OFF = {"schedule": "constant", "norm_rate": 1.0, "averaging": "none", "flip": "none", "views": "none"}
POINTS = [
    ("resnet", {"learning_rate": 0.1, "weight_decay": 3e-6, "momentum": 0.95, "crop": 2, "small_side": 14}),
    ("airbench", OFF | {"label_smoothing": 0.0, "average_every": 7, "optimizer": "sgd"}),
    ("lenet", {"optimizer": "adamw", "mixup": 0.2, "cutmix": 1.0, "erase": 0.25, "averaging": "ema"}),
]


@pytest.mark.parametrize(("model", "point"), POINTS, ids=lambda each: each if isinstance(each, str) else "")
def test_the_command_of_a_winner_comes_to_its_recipe_also_where_that_turns_something_off(model, point):
    search = trials.plan(Tune(model=model))
    plan = trials.plan_at(search.base, point)
    settled = dataclasses.asdict(trials.Settled("float32", 1, "cpu", 2))
    best = optuna.trial.create_trial(values=[0.9], user_attrs={"seed": 3, "settled": settled})
    words = shlex.split(verdict.command(candidates.Candidate(0, plan, 0.9, (best,), None), search.settings))
    given = parse(Train, dict(word.split("=", 1) for word in words if "=" in word))
    assert training.plan(given) == dataclasses.replace(plan, seed=3, batch_parts=1)


@pytest.mark.parametrize(
    ("model", "recipe"), [("lenet", ""), ("lenet", MORE), ("airbench", "norm_rate=1;flip=none"), ("wrn", MORE)]
)
def test_what_a_run_records_of_a_recipe_comes_to_the_same_plan_whatever_the_model_has_by_then(
    model, recipe, monkeypatch
):
    from fmnist.tracking.models import parameters
    from fmnist.tracking.reproduction import Original

    plan = training.plan(Train(model=model, recipe=recipe))
    tags = {"model": model, "device": "cpu", "device.batch_parts": "1"}
    run = SimpleNamespace(data=SimpleNamespace(params=parameters(plan), tags=tags))
    again = Original(run, (run,), {}, "synthetic", "d")
    assert training.plan(again.settings(Reproduce(run="r"))).recipe == plan.recipe
    other = dataclasses.replace(plan.model, recipe=dataclasses.replace(plan.model.recipe, erase=0.5, crop=1))
    monkeypatch.setitem(MODELS._entries, model, other)
    assert training.plan(again.settings(Reproduce(run="r"))).recipe == plan.recipe


# Views, and normalization:


def small(name, text, precision="float32"):
    return MODELS[name].build(MODELS[name].hyperparameters(text), precision=precision, seed=0)


def softmax(logits):
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return chances / chances.sum(axis=1, keepdims=True)


def test_a_model_with_views_has_the_mean_of_the_logits_of_views_made_by_hand(cpu):
    import keras

    model = small("mlp", "dense=8;activation=tanh")
    logits = keras.Model(model.inputs[0], model.get_layer("logits").output)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.float32)
    mirrored = images[:, :, ::-1]
    plain = [logits(each).numpy() for each in (images, mirrored)]
    moved = []
    for each in (images, mirrored):
        down, up = np.zeros_like(each), np.zeros_like(each)
        down[:, 1:, 1:], up[:, :-1, :-1] = each[:, :-1, :-1], each[:, 1:, 1:]
        moved += [logits(down).numpy(), logits(up).numpy()]
    by_hand = {
        "flip": softmax(np.mean(plain, axis=0)),
        "flip_shift": softmax((np.mean(plain, axis=0) + np.mean(moved, axis=0)) / 2),
    }
    for views, expected in by_hand.items():
        np.testing.assert_allclose(models.looking(model, views)(images).numpy(), expected, atol=1e-6)


def test_a_model_with_views_in_bfloat16_is_served_as_it_computes_in_float32(cpu, tmp_path):
    from fmnist.serving import conversion, loader

    model = small("resnet", "filters=4,8;blocks=0,1", "bfloat16")
    for weights in model.weights:
        if "moving" in weights.path:
            weights.assign(weights + 0.1)
    viewed = models.looking(model, "flip_shift")
    exact = conversion.as_float32(viewed)
    images = np.random.default_rng(0).integers(0, 256, (11, 28, 28)).astype(np.float32)
    expected = exact(images).numpy()
    np.testing.assert_allclose(viewed(images).numpy(), expected, atol=0.03)
    same = small("resnet", "filters=4,8;blocks=0,1")
    same.set_weights(model.get_weights())
    np.testing.assert_allclose(models.looking(same, "flip_shift")(images).numpy(), expected, atol=1e-6)
    file = tmp_path / loader.LITERT_FILE
    file.write_bytes(conversion.to_litert(exact))
    served = loader.LiteRTModel(file)
    for count in (1, 3, 8):
        np.testing.assert_allclose(served(images[:count]), expected[:count], atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 2e-5), ("mixed_bfloat16", 0.03)])
@pytest.mark.parametrize("scale", [True, False])
def test_fused_normalization_is_kerass_own(precision, tolerance, scale, cpu):
    import keras
    import tensorflow as tf

    from fmnist.engine.operations import faster

    generator = np.random.default_rng(0)
    inputs = tf.constant(generator.normal(2, 3, (6, 5, 5, 4)), tf.float32)
    towards = tf.constant(generator.normal(0, 1, (6, 5, 5, 4)), tf.float32)
    results = []
    for within in (False, True):
        pixels = keras.Input((5, 5, 4))
        layer = keras.layers.BatchNormalization(scale=scale, momentum=0.6, epsilon=1e-4, dtype=precision)
        model = keras.Model(pixels, layer(pixels))
        model.set_weights([np.linspace(0.5, 2, 4)] * len(model.weights))

        @tf.function(autograph=False)
        def both(model=model, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = tf.cast(model(inputs, training=True), tf.float32)
                loss = tf.reduce_sum(outputs * towards)
            gradients = tape.gradient(loss, [inputs, *(each.value for each in layer.trainable_variables)])
            return outputs, model(inputs, training=False), gradients

        if within:
            with faster(model):
                found = both()
            assert any(
                "FusedBatchNormV3" in each.type for each in both.get_concrete_function().graph.get_operations()
            )
        else:
            found = both()
        results.append([*tf.nest.flatten(found), *model.get_weights()])
        assert "call" not in vars(layer)
    assert results[0][1].dtype == results[1][1].dtype
    for own, other in zip(*results, strict=True):
        own, other = (np.asarray(tf.cast(each, tf.float32)) for each in (own, other))
        np.testing.assert_allclose(other, own, rtol=tolerance, atol=tolerance * np.abs(own).max())


@pytest.mark.parametrize(
    ("side", "kernel", "count"),
    [(3, (3, 3), 32), (6, (3, 3), 12), (8, (1, 5), 7), (5, (5, 2), 16), (13, (3, 3), 4)],
)
def test_gradients_of_a_convolution_over_packed_images_are_kerass_own(side, kernel, count, cpu):
    import keras
    import tensorflow as tf

    from fmnist.engine.operations import faster

    generator = np.random.default_rng(0)
    inputs = tf.constant(generator.normal(0, 1, (count, side, side, 4)), tf.bfloat16)
    towards = tf.constant(generator.normal(0, 1, (count, side, side, 3)), tf.bfloat16)
    pixels = keras.Input((side, side, 4))
    layer = keras.layers.Conv2D(3, kernel, padding="same", activation="relu", dtype="mixed_bfloat16")
    model = keras.Model(pixels, layer(pixels))
    layer.bias.assign([0.1, -0.2, 0.3])

    def found():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = model(inputs)
            loss = tf.reduce_sum(tf.cast(outputs * towards, tf.float32))
        return outputs, *tape.gradient(loss, [inputs, *(each.value for each in layer.trainable_variables)])

    own = found()
    with faster(model):
        assert "call" in vars(layer)
        others = found()
    assert "call" not in vars(layer)
    for each, other in zip(own, others, strict=True):
        each, other = (np.asarray(tf.cast(value, tf.float32)) for value in (each, other))
        np.testing.assert_allclose(other, each, rtol=0.02, atol=0.01 * np.abs(each).max())


# From the first training to the server:

SMALL = {
    **{"model": "airbench", "hyper": "filters=2,3,4", "dataset": "synthetic", "device": "cpu", "batch_parts": 1},
    **{"epochs": 1, "batch_size": 1024},
}


@pytest.fixture(scope="module")
def store(new_store) -> Store:
    return new_store()


@pytest.fixture(scope="module")
def first(store):
    from entry_points.train import train

    with tracked_in(store):
        return train(Train(**SMALL))


def test_a_run_has_the_accuracies_with_views_and_without(store, first):
    metrics = store.client.get_run(first["run_id"]).data.metrics
    names = ("val/views_accuracy", "val/final_accuracy", "test/one_view_accuracy", "test/accuracy")
    assert all(0 < metrics[name] <= 1 for name in names)
    assert store.client.get_run(first["run_id"]).data.params["recipe.views"] == "flip"
    assert store.client.get_model_version("fashion-mnist", "1").tags["serving"] == "litert"


def test_its_model_has_stock_layers_and_is_served_where_the_project_is_not_installed(store, first):
    code = f"""
import sys
sys.modules["fmnist"] = None
import mlflow, numpy as np
mlflow.set_tracking_uri({store.uri!r})
images = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype("float32")
kept = mlflow.keras.load_model("models:/fashion-mnist/1")(images)
served = [each["probabilities"] for each in mlflow.pyfunc.load_model("models:/fashion-mnist/1").predict(images)]
print(np.abs(np.asarray(kept) - np.array(served)).max())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=store.folder, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 1e-5


def test_a_version_with_views_can_be_begun_with(store, first):
    from entry_points.train import train
    from fmnist.tracking import models as log

    uri = "models:/fashion-mnist/1"
    with tracked_in(store):
        again = train(Train(**SMALL, start_from=uri, learning_rate=1e-12, recipe="views=none"))
        before, after = (log.load_model(each) for each in (uri, f"models:/{again['registered']}"))
    one_view = before.get_layer("one_view")
    for layer in after.layers:
        if hasattr(layer, "kernel"):
            np.testing.assert_allclose(layer.kernel, one_view.get_layer(layer.name).kernel, atol=1e-6)
