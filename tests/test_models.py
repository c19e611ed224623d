"""The models, their hyperparameters and recipes."""

import numpy as np
import pytest

import fmnist.models
import fmnist.recipe
from fmnist.errors import FmnistError
from fmnist.registry import MODELS

PARAMETERS = {  # counted by hand from the layers
    "mlp": 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
    "mlp_dropout": 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10,
    "lenet": 61_706,  # as in the paper's layout with full connections
    "alexnet": 2_166_026,
    "cnn64": 640 + 73_856 + 7 * 7 * 128 * 128 + 128 + 128 * 10 + 10,
    "cnn128": 1_280 + 295_168 + 7 * 7 * 256 * 128 + 128 + 128 * 10 + 10,
    # kernels, then of each norm an offset and two statistics, then the last layer
    "airbench": 32 + 9 * (128 + 256 + 512 + 1024 + 2048 + 4096) + 6 * (16 + 32 + 64) + 650,
    "resnet": 16 * 32 + 9 * (2048 + 8192 + 2 * 16384) + 3 * (32 + 64 + 3 * 128) + 1290,
    # WRN-16-4; the paper's 2.7 million, of one colour instead of three
    "wrn": 144
    + 9 * (1024 + 3 * 4096 + 8192 + 3 * 16384 + 32768 + 3 * 65536)
    + (1024 + 8192 + 32768)
    + 4 * (16 + 3 * 64 + 64 + 3 * 128 + 128 + 3 * 256 + 256)
    + 2570,
    "cnn256": 2_560 + 1_180_160 + 7 * 7 * 512 * 128 + 128 + 128 * 10 + 10,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_the_parameters_of_its_layers_and_gives_probabilities_of_raw_pixels(name, cpu):
    model = MODELS[name].build(MODELS[name].hyperparameters(""), precision="float32", seed=0)
    assert model.count_params() == PARAMETERS[name]
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.float32)
    probabilities = model(images).numpy()
    assert probabilities.shape == (3, 10)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_says_whether_its_weights_are_for_images_of_any_side(name, cpu):
    import keras

    model = MODELS[name].build(MODELS[name].hyperparameters(""), precision="float32", seed=0)
    of_images = keras.Model([model.get_layer("channel").output], model.output)

    def at_side(side):
        return keras.models.clone_model(
            of_images, input_tensors=[keras.Input((side, side, 1))], clone_function=lambda layer: layer
        )

    assert at_side(28).output.shape == (None, 10)
    if MODELS[name].any_side:
        assert at_side(20).output.shape == (None, 10)
    else:
        with pytest.raises(ValueError, match="incompatible"):
            at_side(20)


def test_airbenchs_third_convolutions_are_in_branches_that_add_to_what_they_are_given(cpu):
    import keras

    values = MODELS["airbench"].hyperparameters("depth=3;activation=relu")
    model = MODELS["airbench"].build(values, precision="float32", seed=0)
    assert model.count_params() == PARAMETERS["airbench"] + sum(9 * width**2 + 3 * width for width in (16, 32, 64))
    for index, add in enumerate(layer for layer in model.layers if isinstance(layer, keras.layers.Add)):
        third = model.get_layer(f"dirac_{index}c")
        third.set_weights([np.zeros_like(third.kernel)])
        branch, given = add.input
        inner = keras.Model(model.input, [add.output, given])
        added, passed = inner(np.random.default_rng(0).integers(0, 256, (2, 28, 28)).astype(np.float32))
        np.testing.assert_array_equal(added, passed)
        assert branch.shape == given.shape
        assert np.any(passed)
    assert index == 2


def test_the_seed_decides_the_weights(cpu):
    builds = [
        MODELS["lenet"].build(MODELS["lenet"].hyperparameters(""), precision="float32", seed=s) for s in (1, 1, 2)
    ]
    one, again, other = [model.get_weights()[0] for model in builds]
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_model_in_bfloat16_leaves_later_layers_in_float32(cpu):
    import keras

    model = MODELS["lenet"].build(MODELS["lenet"].hyperparameters(""), precision="bfloat16", seed=0)
    assert model.layers[3].compute_dtype == "bfloat16"
    assert keras.layers.Dense(1).compute_dtype == "float32"


def test_more_layers_than_an_image_has_pixels_for_are_refused(cpu):
    values = MODELS["airbench"].hyperparameters("filters=4,4,4,4,4")
    with pytest.raises(
        FmnistError, match=r"^hyper: airbench's layers .* with filters=4,4,4,4,4;depth=2;.*; type "
    ):
        MODELS["airbench"].build(values, precision="float32", seed=0)


def test_the_mlp_recipe_is_the_one_it_replaces():
    recipe = MODELS["mlp"].recipe
    assert recipe == fmnist.recipe.Recipe("sgd", learning_rate=0.01, batch_size=32, epochs=30)


def test_hyperparameters_override_the_defaults():
    values = MODELS["cnn64"].hyperparameters("filters=8,16,32; dropout=0.1 ;activation=gelu")
    assert values == {"filters": (8, 16, 32), "kernel": 3, "dense": (128,), "dropout": 0.1, "activation": "gelu"}


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ("lenet", "dnse=3", "unknown hyperparameter of lenet 'dnse'. Did you mean 'dense'?"),
        ("lenet", "dense", "hyper: dense: expected whole numbers joined by commas, from 1 to 16384; received ''"),
        ("lenet", "dense=1,x", "hyper: dense: expected whole numbers joined by commas"),
        ("lenet", "kernel=3,3", "hyper: kernel: expected whole number from 1 to 7; received '3,3'"),
        ("cnn64", "dropout=1.5", "hyper: dropout: expected number from 0 to 0.95; received '1.5'"),
        ("cnn64", "dropout=nan", "hyper: dropout: expected number from 0 to 0.95; received 'nan'"),
        ("mlp", "activation=rleu", "unknown activation 'rleu'. Did you mean 'relu'?"),
    ],
)
def test_a_bad_hyperparameter_is_refused(model, text, message):
    with pytest.raises(FmnistError) as caught:
        MODELS[model].hyperparameters(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("text", ["filters=4,4,4,4,4,4", "filters=4;kernel=7", "kernel=1", "dense=8"])
def test_lenet_can_be_built_with_any_allowed_shape(text, cpu):
    model = MODELS["lenet"].build(MODELS["lenet"].hyperparameters(text), precision="float32", seed=0)
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("argument", ["width", "width=3", "width: int = 3"])
def test_an_argument_that_does_not_say_what_it_may_be_gets_a_sentence(argument):
    code: dict[str, object] = {}
    exec(f"def builder(*, {argument}): return []", code)
    model = fmnist.models.Model("mine", code["builder"], fmnist.recipe.Recipe("sgd", 0.1, 1, 1), {})
    with pytest.raises(
        FmnistError, match=r"model mine: expected of its argument width a default and an annotation"
    ):
        model.hyperparameters("")
