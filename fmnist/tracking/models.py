"""Logged models and the registry."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import mlflow

from fmnist import serving
from fmnist.arguments import value_text
from fmnist.data import Splits
from fmnist.evaluation import strangeness
from fmnist.recipe import NAMES
from fmnist.settings import augment_text
from fmnist.tracking.cards import model_card

if TYPE_CHECKING:
    from fmnist.training import Fitted, Plan


def parameters(plan: "Plan") -> dict[str, str]:
    """What a plan comes to, resolved: the recipe under the same names for all models, and the model's own."""
    recipe = {
        "model": plan.model.name,
        **dict(zip(NAMES[:4], dataclasses.astuple(plan.recipe)[:4], strict=True)),
        **plan.recipe.beside(plan.model.recipe),  # not what is off: runs of before it was there have it off too
        "augment": augment_text(plan.augment),
        "backend": plan.backend,
        "trainer": plan.trainer,
        "precision": plan.precision,
        "patience": plan.patience,
        "seed": plan.seed,
    }
    if plan.start:
        recipe["start_from"] = plan.start.version
    return {f"recipe.{name}": str(value) for name, value in recipe.items()} | {
        f"hyper.{name}": value_text(value) for name, value in plan.hyperparameters.items()
    }


def log_model(trained: "Fitted", splits: Splits, plan: "Plan") -> str:
    """Logs the model; gives its URI. `fmnist.serving` says what it takes and gives."""
    logged = serving.log_model(
        trained.model,
        name=plan.model.name,
        params=parameters(plan),
        class_names=splits.class_names,
        check_images=splits.train.images[: serving.flavor.NUM_CHECKED],
        strangeness=strangeness.learn(splits.train.images, splits.validation.images),
        metadata={"model": plan.model.name},
    )
    return logged.model_uri


def register(result: dict[str, Any], registered_model: str, **more_tags: Any) -> str | None:
    """Registers a result's model with its card, unless under `none`, if it isn't yet; gives `name/version`."""
    if registered_model == "none":
        return None
    logged = mlflow.MlflowClient().get_logged_model(logged_model_id(result["model_uri"]))
    for there in json.loads(logged.tags.get("mlflow.modelVersions", "[]")):
        if there["name"] == registered_model:  # by a command that was broken off after it
            return f"{there['name']}/{there['version']}"
    named = {
        "model": "model",
        "dataset": "dataset",
        "dataset.digest": "dataset_digest",
        "test.accuracy": "test_accuracy",
        "validation.accuracy": "validation_accuracy",
        "seed": "seed",
    }
    values = {tag: result[name] for tag, name in named.items()} | more_tags
    tags = {tag: f"{value:.4f}" if isinstance(value, float) else str(value) for tag, value in values.items()}
    tags |= {tag: value for tag, value in logged.tags.items() if tag.split(".")[0] == "serving"}
    registered = mlflow.register_model(result["model_uri"], registered_model, tags=tags)
    version = f"{registered.name}/{registered.version}"
    client = mlflow.MlflowClient()
    experiment = client.get_run(result["run_id"]).info.experiment_id
    client.update_model_version(registered.name, registered.version, model_card(result, version, experiment))
    return version


def logged_model_id(model_uri: str) -> str:
    """The id of a logged model, of its URI."""
    return model_uri.removeprefix("models:/")


def is_logged(model_uri: str) -> bool:
    """Whether this store has a logged model."""
    try:
        mlflow.get_logged_model(logged_model_id(model_uri))
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def load_model(model_uri: str) -> Any:
    """The Keras model of a run."""
    return mlflow.keras.load_model(model_uri)
