"""A model is taught a person's own photographs: one training on made-up garments, and one that begins with it."""

from collections.abc import Callable

import numpy as np
import pytest
from conftest import Store, draw_photographs, register_foreign, tracked_in

from fmnist import data
from fmnist.errors import FmnistError
from fmnist.settings import Evaluate, Predict, Reproduce, Train, Validation

# Parts of a batch would fix the threads of a process in which other tests may have computed already.
SMALL = {"model": "mlp", "hyper": "dense=16", "epochs": 1, "device": "cpu", "batch_parts": 1}


@pytest.fixture(scope="module")
def store(new_store: Callable[[], Store]) -> Store:
    return new_store()


@pytest.fixture(scope="module")
def first(store):
    from entry_points.train import train

    with tracked_in(store):
        return train(Train(dataset="synthetic", **SMALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_photographs(tmp_path_factory.mktemp("photos") / "wardrobe", count=9)


@pytest.fixture(scope="module")
def taught(store, first, folder):
    """Taught with a step so small that nothing changes."""
    from entry_points.train import train

    store.client.set_registered_model_alias("fashion-mnist", "champion", "1")
    with tracked_in(store):
        return train(
            Train(
                dataset="folder",
                data_dir=str(folder),
                validation=Validation(2, stratified=True),
                start_from="models:/fashion-mnist@champion",
                learning_rate=1e-12,
                batch_size=4,
                **SMALL,
            )
        )


def weights(store, version):
    from fmnist.tracking import models

    with tracked_in(store):
        return [layer.get_weights() for layer in models.load_model(f"models:/{version}").layers]


def test_the_model_begins_with_the_versions_weights_and_a_class_of_the_same_name_keeps_its_own(
    store, first, taught
):
    before, after = weights(store, first["registered"]), weights(store, taught["registered"])
    for old, new in zip(before[:-2], after[:-2], strict=True):
        for one, other in zip(old, new, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    (old, _), (new, bias) = before[-2], after[-2]
    assert (new.shape, bias.shape) == ((16, 2), (2,))
    np.testing.assert_allclose(new[:, 0], old[:, 1], atol=1e-6)  # Trouser
    assert np.abs(old - new[:, 1:]).max(axis=0).min() > 0.01  # my box is new: none of the ten


def test_the_run_says_what_it_began_with_whatever_becomes_of_the_alias(store, taught):
    run = store.client.get_run(taught["run_id"])
    assert run.data.params["start_from"] == "models:/fashion-mnist@champion"
    assert run.data.params["recipe.start_from"] == "models:/fashion-mnist/1"
    assert "from models:/fashion-mnist/1" in taught["recipe"]
    assert (taught["dataset"], taught["num_test_images"]) == ("folder", 7)


def test_what_was_taught_is_predicted_evaluated_and_reproduced_with_its_own_classes(store, taught, folder):
    from entry_points.evaluate import evaluate
    from entry_points.predict import predict
    from entry_points.reproduce import reproduce

    with tracked_in(store):
        uri = f"models:/{taught['registered']}"
        answered = predict(Predict(images=str(folder), model_uri=uri))
        assert list(answered["per_class"]) == ["Trouser", "my box"]
        assert evaluate(Evaluate(model_uri=uri))["num_images"] == 7
        assert reproduce(Reproduce(run=taught["run_id"]))["verdict"] == "equal, bit for bit"


def test_a_version_that_was_trained_on_images_that_are_now_tested_is_not_begun_with(store, taught, folder):
    from entry_points.train import train
    from fmnist.tracking.training import refuse_seen

    uri, validation = f"models:/{taught['registered']}", Validation(2, stratified=True)
    before = len(store.client.search_runs([store.experiment], "tags.entry_point = 'train'"))
    again = Train(
        dataset="folder",
        data_dir=str(folder),
        validation=validation,
        start_from=uri,
        seed=1,
        registered_model="x",
        **SMALL,
    )
    message = (
        rf"^start_from: {taught['registered']} was trained on \d+ images of the test split; type .*, or begin"
    )
    with tracked_in(store):
        with pytest.raises(FmnistError, match=message):
            train(again)
        refuse_seen(uri, data.load("folder", data_dir=str(folder), validation=validation, seed=0))
    assert len(store.client.search_runs([store.experiment], "tags.entry_point = 'train'")) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"hyper": "dense=8"},
            r"^start_from: fashion-mnist/1 is another model .* -P model=mlp -P 'hyper=.*dense=16",
        ),
        ({"model": "lenet", "hyper": ""}, r"^start_from: fashion-mnist/1 is another model .* -P model=mlp"),
        ({"start_from": "models:/garments/1"}, r"^start_from: garments/1 has no weights that Keras saved"),
        ({"start_from": "models:/nobody/1"}, r"^no model at models:/nobody/1: "),
    ],
)
def test_what_can_not_be_begun_with_is_refused_before_a_run_begins(store, first, given, message):
    from entry_points.train import train

    if "start_from" in given:
        register_foreign(store, "garments", noise=10)
    before = len(store.client.search_runs([store.experiment], "tags.entry_point = 'train'"))
    with tracked_in(store), pytest.raises(FmnistError, match=message):
        train(Train(dataset="synthetic", **{"start_from": "models:/fashion-mnist/1", **SMALL, **given}))
    assert len(store.client.search_runs([store.experiment], "tags.entry_point = 'train'")) == before
