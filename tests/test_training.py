"""Training through the real engine, on data small enough to be quick and hard enough to tell."""

import gc
from dataclasses import replace
from statistics import fmean, stdev
from typing import Annotated

import keras
import numpy as np
import pytest
from conftest import fit_and_test

from fmnist import checkpoint, data, engine, training
from fmnist.arguments import Range
from fmnist.data import Split, Splits
from fmnist.device import Device
from fmnist.engine import randomness
from fmnist.errors import FmnistError
from fmnist.models import Model
from fmnist.options import parse
from fmnist.recipe import Recipe
from fmnist.registry import MODELS
from fmnist.settings import AUGMENTATIONS, OPTIMIZERS, TRAINERS, Train, Validation

pytestmark = pytest.mark.usefixtures("cpu")


@pytest.fixture(scope="module")
def synthetic() -> Splits:
    return data.load("synthetic", data_dir="", validation=Validation(1000), seed=0)


@pytest.fixture(scope="module")
def handful(synthetic) -> Splits:
    """A few images: enough for every path, with a last batch that isn't full."""
    parts = [
        Split(split.images[:n], split.labels[:n]) for split, n in ((synthetic.train, 70), (synthetic.test, 30))
    ]
    return Splits(parts[0], parts[1], parts[1], synthetic.class_names, synthetic.manifest)


def settings_of(**values: object) -> Train:
    return parse(Train, {name: str(value) for name, value in values.items()})


def train(splits: Splits, **settings: object) -> training.Trained:
    return fit_and_test(training.plan(settings_of(**settings)), splits)


def test_lenet_learns_the_synthetic_classes_neither_by_chance_nor_perfectly(synthetic):
    trained = train(synthetic, model="lenet", epochs=3)
    assert 0.6 < trained.test.accuracy < 0.99
    assert trained.test.accuracy == pytest.approx(trained.history[-1].validation_accuracy, abs=0.06)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains(model, handful):
    trained = train(handful, model=model, epochs=1, batch_size=32)
    assert np.isfinite(trained.history[0].train_loss)
    assert trained.test_probabilities.shape == (30, 10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(optimizer, handful):
    history = train(handful, model="mlp", optimizer=optimizer, epochs=6, batch_size=8, learning_rate=1e-3).history
    assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize("parts", [1, 2])
def test_the_same_seed_gives_equal_weights_with_every_random_layer_at_work(handful, parts):
    """On the CPU, where it is promised."""
    settings = {"model": "mlp_dropout", "augment": "+".join(AUGMENTATIONS), "epochs": 2, "batch_size": 16}
    plan = replace(training.plan(settings_of(**settings, seed=5)), batch_parts=parts)
    one, again = (training.fit(plan, handful, lambda _: None).model.get_weights() for _ in range(2))
    for left, right in zip(one, again, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("parts", [1, 2])
def test_another_seed_gives_other_weights(handful, parts):
    settings = {"model": "mlp_dropout", "augment": "shift", "epochs": 1, "batch_size": 16}
    plans = [replace(training.plan(settings_of(**settings, seed=seed)), batch_parts=parts) for seed in (5, 6)]
    one, other = (training.fit(plan, handful, lambda _: None).model.get_weights() for plan in plans)
    assert not np.array_equal(one[0], other[0])


def test_an_epoch_depends_on_seed_and_number_alone(handful):
    """So that a run which begins again in the middle goes on as it would have."""
    plan = training.plan(settings_of(model="mlp_dropout", augment="shift", batch_size=16, optimizer="sgd"))
    results = []
    for epochs in ([1, 2], [3, 2]):
        model = plan.model.build(plan.hyperparameters, precision="float32", seed=0)
        start = model.get_weights()
        engine_ = engine.load(
            "compiled",
            "tensorflow",
            model,
            recipe=plan.recipe,
            augment=plan.augment,
            batch_parts=1,
            images=handful.train.images,
            labels=handful.train.labels,
        )
        engine_.train_epoch(0, epochs[0])
        model.set_weights(start)
        results.append(engine_.train_epoch(0, epochs[1])[:2])
    assert results[0] == results[1]


def test_half_batches_side_by_side_train_as_whole_ones(handful):
    plan = training.plan(Train(model="lenet", epochs=3, batch_size=16))
    whole, halves = (
        fit_and_test(replace(plan, batch_parts=parts), handful).history[-1].train_loss for parts in (1, 2)
    )
    assert halves == pytest.approx(whole, rel=1e-4)


@pytest.fixture
def across(monkeypatch):
    """A model that normalizes over the batch, and one that does so in a layer that nobody knows."""
    import keras

    class Centred(keras.layers.Layer):
        def call(self, inputs):
            return inputs - keras.ops.mean(inputs, axis=0, keepdims=True)

    def known(*, momentum: Annotated[float, Range(0, 1)] = 0.5):
        return [keras.layers.Flatten(), keras.layers.BatchNormalization(momentum=momentum)]

    def unknown(*, width: Annotated[int, Range(1, 64)] = 8):
        return [keras.layers.Flatten(), keras.layers.Dense(width), Centred()]

    models = {
        name: Model(name, each, Recipe("sgd", 0.01, 16, 1), {}) for name, each in (("a", known), ("b", unknown))
    }
    monkeypatch.setattr(MODELS, "_entries", MODELS._entries | models)


def test_batch_normalization_has_the_statistics_of_the_whole_batch(across, handful):
    device = Device("cpu", "two threads", 2, False, {})
    assert training.settle(training.plan(Train(model="mlp", batch_parts=1)), device).batch_parts == 1
    plan = training.settle(training.plan(Train(model="a", batch_size=70)), device)
    assert plan.batch_parts == 1
    *_, moving_mean, moving_variance = (
        weight.numpy() for weight in training.fit(plan, handful, lambda _: None).model.layers[-3].weights
    )
    pixels = handful.train.images.reshape(70, -1) / 255
    np.testing.assert_allclose(moving_mean, 0.5 * pixels.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(moving_variance, 0.5 + 0.5 * pixels.var(axis=0), atol=1e-5)


def test_the_loss_of_an_epoch_is_summed_in_the_same_order_each_time(official_files):
    """Where parts of a batch end in whatever order, so that the last bits of a sum might be left to chance."""
    splits = data.load("fashion-mnist", data_dir=str(official_files), validation=Validation(5000), seed=0)
    plan = replace(training.plan(Train(model="mlp", epochs=1)), batch_parts=2)
    losses = {training.fit(plan, splits, lambda _: None).history[0].train_loss for _ in range(5)}
    assert len(losses) == 1


@pytest.mark.parametrize("model", ["a", "b"])
def test_a_model_that_looks_across_the_batch_is_never_trained_on_parts_of_it(across, handful, model):
    device = Device("cpu", "two threads", 2, False, {})
    assert training.settle(training.plan(Train(model=model)), device).batch_parts == 1
    plan = training.plan(Train(model=model, batch_parts=2))
    with pytest.raises(FmnistError, match=r"looks across the batch; type -P batch_parts=1"):
        training.fit(plan, handful, lambda _: None)


def test_parts_that_are_normalized_apart_are_worked_on_side_by_side(across):
    device = Device("cpu", "two threads", 2, False, {})
    settings = {"model": "a", "recipe": "norm_parts=4"}
    assert training.settle(training.plan(Train(**settings)), device).batch_parts == 4
    assert training.settle(training.plan(Train(**settings, batch_parts=1)), device).batch_parts == 1
    assert training.settle(training.plan(Train(**settings)), replace(device, kind="gpu")).batch_parts == 1
    with pytest.raises(FmnistError, match=r"^batch_parts: expected 1 or 4, as norm_parts .* received 2$"):
        training.settle(training.plan(Train(**settings, batch_parts=2)), device)


def test_stock_fit_is_as_accurate_as_the_compiled_trainer_within_the_noise_of_seeds(official_files):
    splits = data.load("fashion-mnist", data_dir=str(official_files), validation=Validation(5000), seed=0)
    splits = replace(splits, train=Split(splits.train.images[:4000], splits.train.labels[:4000]))
    plan = training.plan(Train(model="lenet", epochs=2, batch_size=32))
    accuracies = {
        trainer: [
            training.fit(
                replace(plan, trainer=trainer, seed=seed), splits, lambda _: None
            ).kept.validation_accuracy
            for seed in range(3)
        ]
        for trainer in TRAINERS
    }
    compiled, fit = accuracies["compiled"], accuracies["fit"]
    noise = ((stdev(compiled) ** 2 + stdev(fit) ** 2) / 3) ** 0.5
    assert abs(fmean(compiled) - fmean(fit)) < 4 * noise, accuracies
    assert min(compiled + fit) > 0.75


def test_stock_fit_augments_too_and_its_model_is_without(handful):
    trained = train(handful, model="mlp", trainer="fit", augment="erase", epochs=2)
    assert trained.history[1].train_loss < trained.history[0].train_loss
    assert [layer.name for layer in trained.model.layers][-1] == "probabilities"
    assert not any("augment" in layer.name for layer in trained.model.layers)


@pytest.mark.parametrize(
    ("model", "has_bfloat16", "taken"),
    [
        ("cnn64", True, "bfloat16"),
        ("cnn64", False, "float32"),
        ("lenet", True, "float32"),
        ("wrn", True, "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_where_device_and_model_gain_by_it(model, has_bfloat16, taken):
    device = Device("gpu", "some GPU", 2, has_bfloat16, {})
    assert training.settle(training.plan(Train(model=model, precision="auto")), device).precision == taken


@pytest.mark.parametrize("trainer", TRAINERS)
def test_training_goes_on_from_a_checkpoint_as_if_never_broken_off(handful, trainer, cache):
    """With patience, whose best weights and whose end must carry over too; from the disk and back."""
    settings = {"model": "mlp_dropout", "augment": "shift", "batch_size": 16, "patience": 4, "trainer": trainer}
    plan = training.plan(settings_of(**settings, epochs=30, learning_rate=0.01))
    identity = training.identity(plan, handful, "cpu")
    states: list[checkpoint.Checkpoint] = []
    told: list[int] = []
    whole = fit_and_test(plan, handful, on_checkpoint=states.append)
    with checkpoint.Keeper("run-of-test", identity, 30) as keeper:
        keeper.save(states[2])
        with pytest.raises(FmnistError, match="is still at work"):
            checkpoint.find("run-of-test", identity, 30)
        assert checkpoint.find("auto", identity, 30) is None
    found = checkpoint.find("run-of-test", identity, 30)
    start = found.checkpoint
    again = fit_and_test(plan, handful, lambda epoch: told.append(epoch.number), start=start)
    assert [epoch.number for epoch in again.history if epoch.compiles] == [1, 4]  # neither is a steady epoch
    checkpoint.discard(found)
    assert told == [epoch.number for epoch in whole.history]
    assert again.kept.number == whole.kept.number
    for left, right in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_bfloat16_computes_the_layers_and_leaves_probabilities_in_float32(handful):
    trained = train(handful, model="lenet", precision="bfloat16", epochs=1)
    computed = {layer.name.rpartition("_")[0] or layer.name: layer.compute_dtype for layer in trained.model.layers}
    assert computed["conv2d"] == "bfloat16"
    assert computed["logits"] == computed["probabilities"] == "float32"
    assert trained.test_probabilities.dtype == np.float32
    np.testing.assert_allclose(trained.test_probabilities.sum(axis=1), 1, atol=1e-5)


def test_patience_keeps_the_best_epoch_on_validation(synthetic):
    """A step so large that accuracy comes and goes."""
    small = Splits(
        Split(synthetic.train.images[:500], synthetic.train.labels[:500]),
        synthetic.validation,
        synthetic.test,
        synthetic.class_names,
        synthetic.manifest,
    )
    trained = train(small, model="mlp", optimizer="adam", learning_rate=0.02, epochs=40, patience=2)
    accuracies = [epoch.validation_accuracy for epoch in trained.history]
    assert trained.kept.number == int(np.argmax(accuracies)) + 1
    assert len(accuracies) == trained.kept.number + 2 < 40
    probabilities = trained.model(small.validation.images.astype(np.float32)).numpy()
    kept = (probabilities.argmax(axis=1) == small.validation.labels).mean()
    assert kept == pytest.approx(max(accuracies), abs=1e-9)


def test_the_test_split_decides_nothing(handful):
    """Other test images, the same training: only the test figures change."""
    other = Splits(
        handful.train,
        handful.validation,
        Split(255 - handful.test.images, handful.test.labels),
        handful.class_names,
        handful.manifest,
    )
    one, two = (train(splits, model="mlp", epochs=3, patience=1) for splits in (handful, other))
    for left, right in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert one.test.loss != two.test.loss


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_changes_images_and_keeps_their_shape_and_range(name, handful):
    images = handful.train.images[..., None].astype(np.float32)
    changed = randomness.augmenter((name,))(images, training=True).numpy()
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 255.001
    assert not np.array_equal(changed, images)


def test_flips_are_flips(handful):
    images = handful.train.images[..., None].astype(np.float32)
    for name, axis in (("flip_horizontal", 2), ("flip_vertical", 1)):
        changed = randomness.augmenter((name,))(images, training=True).numpy()
        flipped = np.flip(images, axis)
        same, turned = (changed == images).all((1, 2, 3)), (changed == flipped).all((1, 2, 3))
        assert (same | turned).all()
        assert 0.2 < turned.mean() < 0.8


def test_photo_leaves_some_images_but_for_a_flip_and_widens_others_within_the_frame():
    images = np.zeros((400, 28, 28, 1), np.float32)
    images[:, :, 8:19] = 150  # as narrow as a dress
    images[:, 3, 8] = 80
    keras.utils.set_random_seed(0)
    changed = randomness.augmenter(("photo",))(images, training=True).numpy()
    same, mirrored = ((changed == other).all((1, 2, 3)) for other in (images, np.flip(images, axis=2)))
    assert 0.08 < same.mean() < 0.25
    assert 0.08 < mirrored.mean() < 0.25
    solid = changed[~same & ~mirrored, ..., 0] > 10
    widths, heights = solid.any(axis=1).sum(axis=1), solid.any(axis=2).sum(axis=1)
    assert np.median(widths / heights) > 11 / 28
    assert np.quantile(widths, 0.95) > 18
    assert np.median(heights) >= 26


RECIPE = "schedule=cosine;averaging=ema;weight_decay=0.1;crop=1"


def test_training_again_and_again_leaves_no_graph_behind(cpu, handful):
    from tensorflow.python.framework.func_graph import FuncGraph

    def num_graphs():
        gc.collect()
        return sum(isinstance(each, FuncGraph) for each in gc.get_objects())

    before = num_graphs()
    for optimizer in ("sgd", "adam"):
        plan = training.plan(Train(model="lenet", epochs=1, optimizer=optimizer, recipe=RECIPE))
        training.fit(plan, handful, lambda _: None)
    small = Train(model="airbench", hyper="filters=2", precision="bfloat16", epochs=1, batch_size=35)
    training.fit(training.plan(small), handful, lambda _: None)
    assert num_graphs() == before


def test_augmentation_is_not_part_of_the_model(handful):
    trained = train(handful, model="mlp", augment="flip_vertical", epochs=1)
    images = handful.test.images.astype(np.float32)
    once, twice = trained.model(images).numpy(), trained.model(images).numpy()
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_allclose(once, trained.test_probabilities, atol=1e-6)


def test_a_batch_larger_than_the_split_is_refused(handful):
    with pytest.raises(FmnistError, match="expected at most the 70 images"):
        training.check_fits(training.plan(Train(batch_size=71)), handful)


def test_a_training_that_diverges_says_so(handful):
    with pytest.raises(FmnistError, match=r"training diverged.*-P learning_rate="):
        train(handful, model="mlp", optimizer="sgd", learning_rate=1e12, epochs=5)
