"""What a recipe has computed, beside slow references in NumPy; with FMNIST_TEST_BACKEND=jax, on JAX."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import fit_and_test

from fmnist import data, device, initial, training
from fmnist.data import Split, Splits
from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.recipe import Recipe
from fmnist.settings import Train, Validation

BACKEND = os.environ.get("FMNIST_TEST_BACKEND", "tensorflow")
COUNT, BATCH, EPOCHS, SEED = 7, 3, 3, 4  # three updates an epoch, the last of one image


@pytest.fixture(scope="module", autouse=True)
def backend(request):
    pytest.importorskip(BACKEND)
    if BACKEND == "jax":
        device.select("cpu", "jax")
    else:
        request.getfixturevalue("cpu")


@pytest.mark.skipif(BACKEND == "jax", reason="it is this one")
def test_all_of_this_holds_on_jax():
    """In a process of its own: one has one backend."""
    pytest.importorskip("jax")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile
    environment = os.environ | {"FMNIST_TEST_BACKEND": "jax", "XLA_FLAGS": quick}
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# Updates of a model whose gradients are written down by hand:


def tiny(*, biggest: bool):
    """Means of 4x4 parts of the image, or its brightest pixel, normalized, and three classes of them."""
    from keras import Input, Model, layers

    pixels = Input((28, 28), name="pixels")
    outputs = layers.Reshape((28, 28, 1), name="channel")(layers.Rescaling(1 / 255)(pixels))
    pool = layers.GlobalMaxPooling2D(keepdims=True) if biggest else layers.AveragePooling2D(7)
    outputs = layers.BatchNormalization(momentum=0.6)(pool(outputs))
    logits = layers.Dense(3, name="logits")(layers.Flatten()(outputs))
    return Model(pixels, layers.Softmax(name="probabilities")(logits))


NAMES = ("gamma", "beta", "moving_mean", "moving_variance", "kernel", "bias")


class Reference:
    """The same model trained by a recipe, in float64."""

    def __init__(self, weights, recipe, num_updates):
        self.weights = {name: each.astype(np.float64) for name, each in zip(NAMES, weights, strict=True)}
        self.weights["kernel"], self.recipe, self.num_updates = self.weights["kernel"].copy(), recipe, num_updates
        self.mean, self.done = dict(self.weights), 0
        self.first, self.second = (dict.fromkeys(NAMES, 0.0) for _ in range(2))

    @property
    def kept(self):
        return self.weights if self.recipe.averaging == "none" else self.mean

    def rate(self):
        recipe, total, done = self.recipe, self.num_updates, self.done + 0.5
        rising = round(recipe.warmup * total)
        if recipe.schedule == "constant":
            return recipe.learning_rate
        if done < rising:
            return recipe.learning_rate * done / rising
        way = (done - rising) / (total - rising)
        left = 1 - way if recipe.schedule == "one_cycle" else (1 + np.cos(np.pi * way)) / 2
        return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * left)

    def update(self, features, labels):
        """One update; gives the summed loss and the number of right answers."""
        recipe, old = self.recipe, self.weights
        targets = np.eye(3)[labels]
        targets = (1 - recipe.label_smoothing) * targets + recipe.label_smoothing / 3
        size = -(-len(features) // recipe.norm_parts)
        parts = [features[start : start + size] for start in range(0, len(features), size)]
        stretch = np.concatenate([np.full((len(each), 1), np.sqrt(each.var() + 1e-3)) for each in parts])
        normal = np.concatenate([each - each.mean() for each in parts]) / stretch
        hidden = old["gamma"] * normal + old["beta"]
        logits = hidden @ old["kernel"] + old["bias"]
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        errors = (chances - targets) / len(labels)
        back = errors @ old["kernel"].T
        gradients = {
            "gamma": recipe.norm_rate * (back * normal).sum(),
            "beta": recipe.norm_rate * back.sum(),
            "kernel": hidden.T @ errors,
            "bias": recipe.bias_rate * errors.sum(axis=0),
        }
        rate, new = self.rate(), dict(old)
        for each in parts:
            new["moving_mean"] = 0.6 * new["moving_mean"] + 0.4 * each.mean()
            new["moving_variance"] = 0.6 * new["moving_variance"] + 0.4 * each.var()
        new["kernel"] = old["kernel"] * (1 - rate * recipe.weight_decay)
        self.done += 1
        for name, gradient in gradients.items():
            new[name] = new[name] + self._step(name, rate, gradient)
        self.weights = new
        self._average()
        return -(targets * np.log(chances)).sum(), (logits.argmax(axis=1) == labels).sum()

    def _step(self, name, rate, gradient):
        if self.recipe.optimizer == "sgd":
            return -rate * gradient
        if self.recipe.optimizer == "momentum":
            self.first[name] = self.recipe.momentum * self.first[name] - rate * gradient
            return self.recipe.momentum * self.first[name] - rate * gradient
        self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
        self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
        scale = np.sqrt(1 - 0.999**self.done) / (1 - 0.9**self.done)
        return -rate * scale * self.first[name] / (np.sqrt(self.second[name]) + 1e-7)

    def _average(self):
        recipe = self.recipe
        if recipe.averaging == "none" or self.done % recipe.average_every:
            return
        if recipe.averaging == "lookahead":
            share = recipe.average_decay * (self.done / self.num_updates) ** 3
        else:
            taken = self.done // recipe.average_every
            share = min(recipe.average_decay, (1 + taken) / (10 + taken))
        self.mean = {name: share * self.mean[name] + (1 - share) * self.weights[name] for name in NAMES}
        if recipe.averaging == "lookahead":
            self.weights = dict(self.mean)


def in_order(epoch):
    """The images as an epoch of so many draws goes through them."""
    from fmnist.engine.randomness import draw_states

    ((first, second), *_) = draw_states(SEED, epoch, 1)
    if BACKEND == "jax":
        import jax

        key = jax.random.wrap_key_data(np.array([first, second], np.uint32), impl="threefry2x32")
        return np.asarray(jax.random.permutation(key, COUNT))
    import tensorflow as tf

    key = np.array([first, second]).astype(np.int32)
    return tf.random.experimental.stateless_shuffle(tf.range(COUNT), key).numpy()


def features_of(image, *, biggest):
    return np.array([image.max()]) if biggest else image.reshape(4, 7, 4, 7).mean(axis=(1, 3)).ravel()


ALL = {
    "optimizer": "momentum",
    "momentum": 0.8,
    "schedule": "cosine",
    "warmup": 0.3,
    "final_rate": 0.05,
    "weight_decay": 0.05,
    "bias_rate": 5.0,
    "norm_rate": 0.3,
    "norm_parts": 2,
    "label_smoothing": 0.2,
    "averaging": "lookahead",
    "average_every": 2,
    "flip": "alternating",
}


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Has the epoch compiled by XLA, as one loop."""
    if BACKEND == "jax":
        import jax

        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    else:
        import tensorflow as tf

        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])


RECIPES = [
    {},
    {"schedule": "one_cycle", "warmup": 0.4, "final_rate": 0.1},
    {"schedule": "cosine"},
    {"optimizer": "momentum"},
    {"optimizer": "adam", "weight_decay": 0.1, "label_smoothing": 0.3},
    {"weight_decay": 0.1, "bias_rate": 3.0, "norm_rate": 7.0},
    {"norm_parts": 3},
    {"averaging": "ema"},
    {"averaging": "ema", "average_every": 4, "average_decay": 0.1, "flip": "random"},
    {"averaging": "lookahead", "average_every": 2},
    {"small_side": 9, "small_epochs": 0.7},
]


@pytest.mark.parametrize("named", RECIPES, ids=str)
def test_weights_and_losses_are_those_of_a_slow_reference(named):
    check(named)


def test_all_together_are_those_of_a_slow_reference():
    check(ALL)


def test_all_together_are_so_too_as_one_loop_by_xla(as_on_a_gpu):
    check(ALL)


def check(named):
    from fmnist import engine as engines
    from fmnist.engine.changes import mirrored, resized

    recipe = Recipe(**{"optimizer": "sgd", "learning_rate": 0.05, "batch_size": BATCH, "epochs": EPOCHS} | named)
    if recipe.optimizer == "adam":
        recipe = replace(recipe, learning_rate=0.01)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8) // np.arange(1, 29, dtype=np.uint8)
    labels = np.arange(COUNT, dtype=np.uint8) % 3
    model = tiny(biggest=bool(recipe.small_side))
    model.set_weights([generator.normal(1, 0.3, each.shape) for each in model.get_weights()])
    reference = Reference(model.get_weights(), recipe, 9)
    engine = engines.load(
        "compiled", BACKEND, model, recipe=recipe, augment=(), batch_parts=1, images=images, labels=labels
    )
    for epoch in range(1, EPOCHS + 1):
        seen = resized(images, 9) if recipe.small_side and epoch <= 2 else images
        turned = np.array([mirrored(recipe.flip, SEED, epoch, COUNT)]).T[..., None] > 0
        seen = np.where(turned, seen[:, :, ::-1], seen) / 255
        features = np.array([features_of(each, biggest=bool(recipe.small_side)) for each in seen])
        order = in_order(epoch)
        batches = [order[start : start + BATCH] for start in range(0, COUNT, BATCH)]
        sums = np.sum([reference.update(features[batch], labels[batch]) for batch in batches], axis=0)
        loss, accuracy, _ = engine.train_epoch(SEED, epoch)
        np.testing.assert_allclose([loss, accuracy], sums / COUNT, rtol=1e-4, atol=1e-5)
        for name, weights in zip(NAMES, model.get_weights(), strict=True):
            np.testing.assert_allclose(weights, reference.kept[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (1, 2, 2, 6)], ids=["tall", "wide"])
def test_kernels_of_convolutions_go_along_their_orthogonalized_momentum_and_keep_their_norm(shape):
    import keras
    from keras import ops

    from fmnist.engine import schedule

    recipe = Recipe("momentum", 0.5, 8, 1, schedule="one_cycle", momentum=0.8, muon=0.02)
    generator = np.random.default_rng(0)
    kernel, bias = (keras.Variable(each, dtype="float32") for each in (generator.normal(size=shape), np.ones(3)))
    optimizer = schedule.optimizer(recipe, 4, "float32")
    optimizer.build([kernel, bias])
    held, velocity, plain, plain_velocity = kernel.numpy().reshape(-1, shape[-1]), 0.0, np.ones(3), 0.0
    for update in range(4):
        gradient, other = generator.normal(size=shape), generator.normal(size=3)
        optimizer.apply([ops.cast(each, "float32") for each in (gradient, other)], [kernel, bias])
        share = 1 - (update + 0.5) / 4
        velocity = 0.8 * velocity + gradient.reshape(held.shape)
        left, values, right = np.linalg.svd(gradient.reshape(held.shape) + 0.8 * velocity, full_matrices=False)
        values /= np.linalg.norm(values)
        for _ in range(3):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        held = held * np.sqrt(shape[-1]) / np.linalg.norm(held) - 0.02 * share * left @ np.diag(values) @ right
        plain_velocity = 0.8 * plain_velocity - 0.5 * share * other
        plain = plain + 0.8 * plain_velocity - 0.5 * share * other
        np.testing.assert_allclose(kernel.numpy().reshape(held.shape), held, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(bias.numpy(), plain, rtol=1e-5)


# What becomes of images and labels:


def changed(images, labels, *, seed=1, num_classes=3, **recipe):
    """Images `(batch, side, side)` as a recipe changes them, and their targets."""
    from keras import ops

    from fmnist.engine.changes import Changes

    changes = Changes(Recipe("sgd", 0.1, 1, 1, **recipe), (), num_classes, images.shape[1:])
    for state in changes.variables:
        state.assign([seed, 0])
    found = changes(images[..., None].astype(np.float32), labels.astype(np.int32), np.zeros(len(images), np.uint8))
    pixels, targets = map(ops.convert_to_numpy, found)
    return pixels[..., 0], targets


def test_each_image_is_mirrored_in_every_second_epoch_and_chance_says_how_it_begins():
    from fmnist.engine.changes import mirrored

    epochs = [mirrored("alternating", 0, epoch, 1000) for epoch in (255, 256, 257, 258)]
    for turns, each in enumerate(epochs[1:], start=1):
        np.testing.assert_array_equal(each, epochs[0] ^ turns % 2)
    assert 400 < epochs[0].sum() < 600
    assert (mirrored("alternating", 1, 255, 1000) != epochs[0]).any()


def test_by_chance_half_of_the_images_are_mirrored_others_each_epoch():
    from fmnist.engine.changes import mirrored

    one, two = (mirrored("random", 0, epoch, 1000) for epoch in (1, 2))
    assert 400 < one.sum() < 600
    assert 400 < (one != two).sum() < 600
    np.testing.assert_array_equal(one, mirrored("random", 0, 1, 1000))


def test_a_moved_image_is_the_padded_one_at_some_place_and_all_places_occur():
    images = np.random.default_rng(0).integers(1, 256, (500, 6, 6))
    moved, labels = changed(images, np.arange(500) % 3, crop=2)
    np.testing.assert_array_equal(labels, np.arange(500) % 3)
    places = []
    for image, found in zip(images, moved, strict=True):
        padded = np.pad(image, 2)
        places += [
            (row, column)
            for row in range(5)
            for column in range(5)
            if (padded[row : row + 6, column : column + 6] == found).all()
        ]
    assert len(places) == 500
    assert len(set(places)) == 25


def is_rectangle(mask):
    return (mask == np.outer(mask.any(axis=1), mask.any(axis=0))).all()


def test_a_share_of_images_loses_a_rectangle_of_2_to_33_percent():
    images, _ = changed(np.full((900, 28, 28), 9), np.zeros(900), erase=0.4)
    masks = [image == 0 for image in images if (image == 0).any()]
    assert abs(len(masks) - 360) < 4 * (900 * 0.4 * 0.6) ** 0.5
    assert all(is_rectangle(mask) for mask in masks)
    assert set(np.unique(images)) == {0, 9}
    sides = np.array([(mask.any(axis=1).sum(), mask.any(axis=0).sum()) for mask in masks])
    assert (np.prod(sides + 1, axis=1) >= 0.02 * 784).all()
    assert (np.prod(sides - 1, axis=1) <= 0.33 * 784).all()
    assert np.prod(sides, axis=1).mean() / 784 == pytest.approx(0.175, abs=0.02)
    ratios = sides[:, 0] / sides[:, 1]
    assert np.exp(np.log(ratios).mean()) == pytest.approx(1, abs=0.15)
    assert ratios.max() > 2.5
    assert ratios.min() < 0.4


def halves(count, side=28):
    """Black images of one class, then white ones of another: any image and its other are unlike."""
    labels = np.arange(count) // (count // 2)
    return np.broadcast_to(255 * labels[:, None, None], (count, side, side)), labels


def shares_of(images, labels):
    """What is left of each image, by its pixels."""
    white = images.mean(axis=(1, 2)) / 255
    return np.where(labels == 1, white, 1 - white)


@pytest.mark.parametrize("concentration", [0.2, 1.0])
def test_mixed_images_have_the_labels_of_both_by_their_shares(concentration):
    images, labels = halves(2000, side=4)
    mixed, targets = changed(images, labels, mixup=concentration)
    shares = shares_of(mixed, labels)
    assert np.ptp(mixed, axis=(1, 2)).max() < 1e-3
    own = targets[np.arange(2000), labels]
    np.testing.assert_allclose(own, shares, atol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert targets[:, 2].max() == 0
    assert shares.mean() == pytest.approx(0.5, abs=0.04)
    assert shares.var() == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.1)  # of Beta(a, a)


def test_a_part_of_another_image_counts_as_much_as_its_pixels():
    images, labels = halves(1000)
    cut, targets = changed(images, labels, cutmix=1.0, label_smoothing=0.3)
    assert set(np.unique(cut)) == {0, 255}
    assert all(is_rectangle(image != own) for image, own in zip(cut, images, strict=True))
    own, other = (targets[np.arange(1000), each] for each in (labels, 1 - labels))
    shares = shares_of(cut, labels)
    np.testing.assert_allclose(own, 0.7 * shares + 0.1, atol=1e-5)
    np.testing.assert_allclose(other, 0.7 * (1 - shares) + 0.1, atol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert shares.std() > 0.1


def test_with_both_each_has_half_of_the_images():
    images, labels = halves(1000)
    found, targets = changed(images, labels, cutmix=1.0, mixup=1.0)
    np.testing.assert_allclose(targets[np.arange(1000), labels], shares_of(found, labels), atol=1e-5)
    between = ((found > 0.01) & (found < 254.99)).any(axis=(1, 2))
    assert abs(between.sum() - 500) < 70


def test_an_odd_image_out_and_a_batch_of_one_are_mixed_with_themselves():
    images, labels = np.full((1, 28, 28), 7), np.array([2])
    for name in ("mixup", "cutmix"):
        found, targets = changed(images, labels, **{name: 1.0})
        np.testing.assert_allclose(found, images, atol=1e-4)
        np.testing.assert_allclose(targets, [[0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize("side", [1, 9, 14, 27])
def test_a_smaller_image_has_the_means_of_what_its_pixels_cover(side):
    from fmnist.engine.changes import resized

    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    smaller = resized(images, side)
    for image, found in zip(images, smaller, strict=True):
        fine = np.kron(image, np.ones((side, side)))  # each pixel as so many, of which 28 x 28 make a new one
        means = fine.reshape(side, 28, side, 28).mean(axis=(1, 3))
        assert np.abs(found - means).max() < 0.501
    assert (smaller.dtype, smaller.shape) == (np.uint8, (3, side, side))


# Trainings:


@pytest.fixture(scope="module")
def handful() -> Splits:
    synthetic = data.load("synthetic", data_dir="", validation=Validation(1000), seed=0)
    train, other = (
        Split(each.images[:n], each.labels[:n]) for each, n in ((synthetic.train, 16), (synthetic.test, 8))
    )
    return Splits(train, other, other, synthetic.class_names, synthetic.manifest)


def plan_of(**settings):
    settings |= {"backend": BACKEND, "batch_size": 8}
    return training.plan(parse(Train, {name: str(value) for name, value in settings.items()}))


TRAININGS = {
    "airbench": {"hyper": "filters=2", "recipe": "average_every=2;norm_parts=2"},
    "resnet": {
        "hyper": "filters=2,3;blocks=0,1",
        "recipe": "schedule=cosine;averaging=ema;small_side=14;weight_decay=0.01;views=flip_shift",
        "augment": "shift",
    },
    "wrn": {
        "hyper": "depth=10;width=1;dropout=0.2",
        "recipe": "mixup=0.5;cutmix=0.5;erase=0.5;crop=2",
        "epochs": 2,
    },
}


@pytest.mark.parametrize("model", TRAININGS)
def test_a_training_with_all_of_a_recipe_goes_on_as_if_never_broken_off(model, handful):
    plan = plan_of(model=model, **({"epochs": 3} | TRAININGS[model]))
    states = []
    whole = fit_and_test(plan, handful, on_checkpoint=states.append)
    again = fit_and_test(plan, handful, start=states[-2])
    assert again.history[-1].train_loss == whole.history[-1].train_loss
    for left, right in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(whole.test_probabilities, again.test_probabilities)


@pytest.mark.parametrize("parts", [1, 2] if BACKEND == "tensorflow" else [1])
def test_an_epoch_with_every_change_depends_on_seed_and_number_alone(handful, parts, request):
    from fmnist import engine as engines

    if parts == 1:
        request.getfixturevalue("as_on_a_gpu")
    plan = plan_of(model="mlp", hyper="dense=4", recipe="flip=random;crop=2;erase=0.5;mixup=1;cutmix=1")
    results = []
    for first in (1, 3):
        model = plan.model.build(plan.hyperparameters, precision="float32", seed=0)
        start = model.get_weights()
        engine = engines.load(
            "compiled",
            BACKEND,
            model,
            recipe=plan.recipe,
            augment=plan.augment,
            batch_parts=parts,
            images=handful.train.images,
            labels=handful.train.labels,
        )
        engine.train_epoch(0, first)
        model.set_weights(start)
        results.append([engine.train_epoch(0, 2)[:2], *model.get_weights()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isfinite(results[0][0]).all()


def test_smaller_images_are_refused_for_a_model_of_one_side():
    message = r"^recipe: small_side=14: lenet has layers for images of one side alone; .* -P model=resnet$"
    with pytest.raises(FmnistError, match=message):
        plan_of(model="lenet", recipe="small_side=14", epochs=2)
    plan_of(model="resnet", recipe="small_side=14")


def test_images_too_small_for_a_model_are_refused(handful):
    plan = plan_of(model="airbench", hyper="filters=4,4,4", recipe="small_side=7", epochs=2)
    with pytest.raises(FmnistError, match=r"^recipe: small_side=7 is too small for airbench; type a larger one$"):
        training.prepare(plan, handful)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX gathers bytes on a GPU, too")
def test_a_gpu_without_xla_is_given_images_as_numbers_that_it_can_gather(handful, request):
    import tensorflow as tf

    plan = plan_of(model="mlp", hyper="dense=4", recipe="flip=alternating", augment="flip_vertical")
    passes = []
    for kept_as in (tf.uint8, tf.bfloat16):
        if kept_as == tf.bfloat16:
            request.getfixturevalue("as_on_a_gpu")
        model, engine = training.prepare(plan, handful)
        assert {each.dtype for each in (engine._images, engine._labels)} == {kept_as}
        assert not engine.xla
        passes.append([engine.train_epoch(0, 1)[:2], *model.get_weights()])
    for one, other in zip(*passes, strict=True):
        np.testing.assert_array_equal(one, other)


def test_whitened_patches_are_uncorrelated_and_of_variance_1(handful):
    import keras

    images = handful.train.images
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 2, use_bias=False, name="whiten"),
            keras.layers.Conv2D(9, 3, padding="same", name="dirac_1"),
        ]
    )
    initial.begin(model, images)
    whiten, dirac = model.layers
    answers = keras.ops.convert_to_numpy(whiten(images[..., None].astype(np.float32) / 255))
    covariance = np.cov(answers.reshape(-1, 8)[:, :4], rowvar=False)
    np.testing.assert_allclose(covariance, np.eye(4), atol=0.15)
    np.testing.assert_allclose(answers[..., 4:], -answers[..., :4], atol=1e-4)
    passed = keras.ops.convert_to_numpy(dirac(answers))
    np.testing.assert_allclose(passed[..., :8], answers, atol=1e-4)
    assert np.abs(passed[..., 8]).max() > 0.1


@pytest.mark.filterwarnings("ignore:.*native_serialization:DeprecationWarning")  # Keras's way to export from JAX
@pytest.mark.parametrize("views", ["flip", "flip_shift"])
def test_a_model_with_views_can_be_converted_for_serving(views):
    from fmnist import models
    from fmnist.serving import conversion

    plan = plan_of(model="resnet", hyper="filters=2,3")
    model = plan.model.build(plan.hyperparameters, precision="float32", seed=0, num_classes=10)
    assert conversion.to_litert(models.looking(model, views))
