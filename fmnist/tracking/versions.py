"""Models to be judged: found by their address, with what they were trained on; they answer as when served."""

import io
import os
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from numpy.typing import NDArray

from fmnist import data
from fmnist.data import Split, Splits
from fmnist.errors import FmnistError
from fmnist.evaluation import strangeness
from fmnist.evaluation.strangeness import Strangeness
from fmnist.registry import DATASETS
from fmnist.serving import loader
from fmnist.settings import Validation, parse_validation

NUM_AT_ONCE = 500  # images asked for in one call; a served model may refuse more
SIDE = 28
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the codes for a version, and for an alias


@dataclass(frozen=True)
class Training:
    """What a model was trained on, as the run that trained it tells."""

    dataset: str
    data_dir: str
    validation: Validation
    seed: int


@dataclass(frozen=True)
class Version:
    """A model that MLflow knows."""

    uri: str
    """An alias is resolved: `models:/NAME/NUMBER`."""
    name: str
    number: str
    """In the registry; both empty if it isn't there."""
    model_id: str | None
    tags: Mapping[str, str]
    training: Training | None
    """None if it isn't known."""
    class_names: tuple[str, ...] = tuple("0123456789")
    """Its own, or those of the dataset that it was trained on; numbers where neither is known."""

    def __str__(self) -> str:
        return f"{self.name}/{self.number}" if self.name else self.uri


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    answer: Callable[[NDArray[np.float32]], Any]
    """What a server would send back for pixels `(batch, 28, 28)`."""
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    """Probabilities `(batch, classes)` of images `(batch, 28, 28)`."""
    size_bytes: int
    """Of the model's file that is served; of all files of one that has none such."""
    strangeness: Strangeness | None = None
    """How far images are from those that it was trained on; None for a model of elsewhere, or an early one."""


def find(model_uri: str) -> Version:
    """The model at an address; an alias is resolved to the version that has it now.

    Raises:
        FmnistError: If there is none, or it doesn't take pixels `(batch, 28, 28)`.
    """
    client = mlflow.MlflowClient()
    registered, name = None, ""
    try:
        name, alias, number = _parts(model_uri)
        if alias:
            registered = client.get_model_version_by_alias(name, alias)
        elif number.isdigit():
            registered = client.get_model_version(name, number)
        if registered:
            model_uri = f"models:/{registered.name}/{registered.version}"
        info = mlflow.models.get_model_info(model_uri)
    except (mlflow.MlflowException, OSError) as error:
        raise FmnistError(
            f"no model at {model_uri}: {str(error).rstrip('.')}{_instead(name, client, error)}"
        ) from None
    if info.signature is not None:
        _check_signature(model_uri, info.signature)
    tags = registered.tags if registered else {}
    training = _training((registered and registered.run_id) or info.run_id)
    own = tags.get("dataset", "") or (training.dataset if training else "")
    class_names = (info.metadata or {}).get("class_names")
    if not class_names:
        class_names = DATASETS[own].class_names if own in list(DATASETS) else Version.class_names
    return Version(
        uri=model_uri,
        name=registered.name if registered else "",
        number=str(registered.version) if registered else "",
        model_id=info.model_id,
        tags=tags,
        training=training,
        class_names=tuple(class_names),
    )


def _instead(name: str, client: mlflow.MlflowClient, error: Exception) -> str:
    """What may be named in place of a version that isn't there; nothing if the store could not be asked."""
    if getattr(error, "error_code", "") not in NOT_THERE or not name or "'" in name:
        return ""
    found = client.search_model_versions(f"name = '{name}'")
    uris = [f"models:/{name}/{number}" for number in sorted(int(each.version) for each in found)]
    if not uris:
        return ""
    return (
        f"; there is {', '.join(uris[-5:])}: type one, or make one the champion by promote -P candidate={uris[-1]}"
    )


def splits(version: Version, dataset: str, data_dir: str) -> Splits:
    """The splits of a dataset, cut as the model's training cut them, if that is known; empty: its own dataset.

    Raises:
        FmnistError: If no dataset is named and the model's own isn't known.
    """
    training = version.training
    own = version.tags.get("dataset", "") or (training.dataset if training else "")
    if not (dataset or own):
        raise FmnistError(
            f"dataset: it isn't known what {version} was trained on; type for example -P dataset=fashion-mnist"
        )
    if training is None or dataset not in ("", "auto", own):
        return data.load(dataset or own, data_dir=data_dir, validation=Validation(5000), seed=0)
    if not data_dir and Path(training.data_dir).is_dir():
        data_dir = training.data_dir
    return data.load(dataset or own, data_dir=data_dir, validation=training.validation, seed=training.seed)


def test_split(version: Version, dataset: str, data_dir: str) -> Split:
    """The test split of a dataset, as `splits` gives it, whose classes are the version's.

    Raises:
        FmnistError: If they are others.
    """
    found = splits(version, dataset, data_dir)
    known = version.training or version.tags.get("dataset") or version.class_names != Version.class_names
    fits = (
        found.class_names == version.class_names if known else len(found.class_names) == len(version.class_names)
    )
    if not fits:
        raise FmnistError(
            f"dataset: {version} knows the classes {', '.join(version.class_names)}; "
            f"{found.manifest['dataset']} has {', '.join(found.class_names)}; "
            "leave dataset empty, or name one that has the version's classes"
        )
    return found.test


def own_splits(version: Version, data_dir: str) -> Splits:
    """The very splits that a version was trained and validated on.

    Raises:
        FmnistError: If they aren't known, or what is there now isn't what was there then.
    """
    digest = version.tags.get("dataset.digest")
    if version.training is None or digest is None:
        raise FmnistError(
            f"{version}: it isn't known which images it was trained on (no tag dataset.digest, or no run that "
            "says how they were split), so none is known to be new to it; promote a version that train or tune "
            "registered"
        )
    found = splits(version, "", data_dir)
    if found.manifest["digest"] != digest:
        raise FmnistError(
            f"{version} was trained on {version.tags.get('dataset')} with digest {digest}, what is there now has "
            f"{found.manifest['digest']}; name the folder of its data with -P data_dir=FOLDER"
        )
    return found


def load(version: Version, num_classes: int) -> Served:
    """Loads a model in the form in which it is served.

    Raises:
        FmnistError: If MLflow can't load it; and what `predict` gives raises it, if that is no probabilities.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        folder = Path(mlflow.artifacts.download_artifacts(version.uri))
        model = mlflow.pyfunc.load_model(str(folder))
    except (mlflow.MlflowException, OSError, ImportError, ValueError, TypeError, AttributeError) as error:
        raise FmnistError(f"{version} can't be loaded: {error}") from None

    def answer(pixels: NDArray[np.float32]) -> Any:
        with redirect_stdout(io.StringIO()):  # Keras draws a bar
            return model.predict(pixels)

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = [images[start : start + NUM_AT_ONCE] for start in range(0, len(images), NUM_AT_ONCE)]
        try:
            answers = [_probabilities(answer(part.astype(np.float32))) for part in parts]
        except (mlflow.MlflowException, TypeError, ValueError, KeyError) as error:
            raise FmnistError(
                f"{version} doesn't answer pixels (batch, 28, 28) with probabilities: {error}"
            ) from error
        for found, part in zip(answers, parts, strict=True):
            expected = (len(part), num_classes)
            if found.shape != expected or not np.allclose(found.sum(axis=1), 1, atol=1e-3):
                raise FmnistError(
                    f"{version}: expected probabilities {expected} that sum to 1, received an array {found.shape}"
                )
        return np.concatenate(answers)

    ours = (folder / "data" / file for file in (loader.LITERT_FILE, loader.KERAS_FILE))
    files = next(([file] for file in ours if file.exists()), folder.rglob("*"))
    size_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return Served(answer, predict, size_bytes, strangeness.read(folder / "data" / strangeness.FILE))


def check_missing(error: mlflow.MlflowException) -> None:
    """Raises `FmnistError` unless an error says that something isn't there: the server may have failed."""
    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
        uri = mlflow.get_tracking_uri()
        raise FmnistError(f"MLflow at {uri} doesn't answer: {error}. Check MLFLOW_TRACKING_URI") from error


def _parts(model_uri: str) -> tuple[str, str, str]:
    """Name, alias and number of `models:/NAME@ALIAS` or `models:/NAME/NUMBER`; empty where there is none."""
    place = model_uri.removeprefix("models:/")
    if place == model_uri:
        return "", "", ""
    if "@" in place:
        name, _, alias = place.partition("@")
        return name, alias, ""
    name, _, number = place.partition("/")
    return name, "", number


def _check_signature(model_uri: str, signature: Any) -> None:
    inputs, expected = signature.inputs, (-1, SIDE, SIDE)
    if inputs is None or not inputs.is_tensor_spec():
        return  # then its answer tells
    (first, *more) = inputs
    if more or first.name or first.shape != expected or first.type != np.float32:
        raise FmnistError(
            f"{model_uri}: expected a model of one unnamed input, float32 {expected}; received {inputs!r}"
        )


def _training(run_id: str | None) -> Training | None:
    """What a run, or the nearest above it that says so, was told to train on."""
    client = mlflow.MlflowClient()
    while run_id:
        try:
            found = client.get_run(run_id).data
        except mlflow.MlflowException as error:
            check_missing(error)  # deleted, or of another store
            return None
        told = found.params
        if {"dataset", "data_dir", "validation", "seed"} <= told.keys():
            return Training(
                dataset=told["dataset"],
                data_dir=told["data_dir"],
                validation=parse_validation(told["validation"]),
                seed=int(told["seed"]),
            )
        run_id = found.tags.get("mlflow.parentRunId")
    return None


def _probabilities(answer: Any) -> NDArray[np.float32]:
    """Probabilities `(batch, classes)` of what a model answers: an array, a table, or a record for each image."""
    if isinstance(answer, Mapping):
        answer = answer["predictions"]
    if hasattr(answer, "to_dict") and "probabilities" in answer:  # a pandas table
        answer = list(answer["probabilities"])
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping):
        answer = [each["probabilities"] for each in answer]
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping):  # by class name
        answer = [list(each.values()) for each in answer]
    return np.asarray(answer, dtype=np.float32)
