"""What becomes of a trained model: a version that Keras loads, and that MLflow serves without Keras.

`loader` is the code that is saved with a version and answers requests, `conversion` makes what it computes
with, and `flavor` puts both beside the Keras model. Here is what tracking calls.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import numpy as np
from mlflow.models import Model
from numpy.typing import NDArray

from fmnist.evaluation.strangeness import Strangeness
from fmnist.serving import flavor

if TYPE_CHECKING:
    import keras


class Logged(NamedTuple):
    """A model that MLflow has."""

    model_uri: str
    tags: dict[str, str]
    """How it is served: `serving` is `litert`, or `keras` with the `serving.reason`."""


def log_model(
    model: "keras.Model",
    *,
    name: str,
    class_names: tuple[str, ...],
    check_images: NDArray[np.uint8],
    strangeness: Strangeness | None = None,
    params: dict[str, str],
    metadata: dict[str, Any],
) -> Logged:
    """Logs a model to the active run, which gets the tags too.

    Args:
        model: Takes raw pixels, float32 `(batch, height, width)`, 0-255; gives probabilities `(batch, classes)`.
        name: Of the model in the run.
        class_names: Of the classes, in their order.
        check_images: `(batch, height, width)`; 256 of them are asked for, on which the served model must agree
            with the Keras model.
        strangeness: How far an image is from those that the model was trained on.
        params: What it was made with, for MLflow's page of models.
        metadata: What else MLmodel is to say of the model.
    """
    info = Model.log(
        artifact_path=None,
        name=name,
        flavor=flavor,
        params=params,
        metadata=metadata,
        model=model,
        class_names=class_names,
        check_images=check_images,
        strangeness=strangeness,
    )
    serving = info.metadata["serving"]
    texts = {key: f"{value:.1e}" if isinstance(value, float) else value for key, value in serving.items()}
    tags = {"serving": texts.pop("runtime")} | {f"serving.{key}": text for key, text in texts.items()}
    mlflow.set_tags(tags)
    mlflow.MlflowClient().set_logged_model_tags(info.model_id, tags)
    return Logged(str(info.model_uri), tags)
