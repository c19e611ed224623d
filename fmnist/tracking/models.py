"""Logged models and the registry."""

import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from fmnist.data import Splits

if TYPE_CHECKING:
    from fmnist.training import Fitted, Plan

# What a served model needs; the rest of the environment stays out of it.
_REQUIREMENTS = ("mlflow", "keras", "numpy")
_BACKEND_REQUIREMENTS = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "jax": ("jax", "jaxlib")}


def log_model(trained: "Fitted", splits: Splits, plan: "Plan") -> str:
    """Logs the Keras model; gives its URI.

    It takes raw pixels, float32 `(batch, 28, 28)`, 0-255, and gives float32 `(batch, 10)`.
    """
    float32 = np.dtype(np.float32)
    side = splits.test.images.shape[1]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, side, side))]),
        outputs=Schema([TensorSpec(float32, (-1, len(splits.class_names)))]),
    )
    logged = mlflow.keras.log_model(
        trained.model,
        name="model",
        signature=signature,
        pip_requirements=[
            f"{name}=={version(name)}"
            for name in (*_REQUIREMENTS, *_BACKEND_REQUIREMENTS[plan.backend])
            if _installed(name)
        ],
        metadata={"class_names": list(splits.class_names), "model": plan.model.name},
    )
    return str(logged.model_uri)


def register(result: dict[str, Any], registered_model: str, **more_tags: Any) -> str | None:
    """Registers the model of a result, unless under `none`, if it isn't yet; gives `name/version`."""
    if registered_model == "none":
        return None
    logged = mlflow.MlflowClient().get_logged_model(result["model_uri"].removeprefix("models:/"))
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
    registered = mlflow.register_model(result["model_uri"], registered_model, tags=tags)
    return f"{registered.name}/{registered.version}"


def load_model(model_uri: str) -> Any:
    """The Keras model of a run."""
    return mlflow.keras.load_model(model_uri)


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
