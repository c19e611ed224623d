"""Answers for images: the `python_function` side of a model version.

This file is saved with every version and runs where nothing else of the project is installed. It needs NumPy,
MLflow and ai-edge-litert; Keras and its backend only for a version that holds no LiteRT model.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from numpy.typing import NDArray

LITERT_FILE, KERAS_FILE, ABOUT_FILE = "model.tflite", "model.keras", "served.json"
MAX_IMAGES = 1000
# More images in one call are slower on a CPU, image by image, for what they make no longer fits its caches.
NUM_TOGETHER = 8
WARNING = "all values lie within 0..1: expected pixels from 0 to 255; were they scaled already?"
_RECEIVED = {"U": "text", "S": "text", "b": "true and false", "O": "null, or values of several kinds"}

Images = NDArray[np.float32]
Probabilities = NDArray[np.float32]


class RefusedInput(MlflowException):  # type: ignore[misc]  # MLflow has no types
    """Becomes an HTTP 400 with one sentence."""

    # MLflow's server writes the whole input in front of the message of an error.
    message = property(lambda self: self.args[0], lambda self, _: None)

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


class LiteRTModel:
    """Gives probabilities by LiteRT.

    The server asks from several threads, and an interpreter serves one call at a time. So there are as many as the
    machine has processors, made when needed: more would answer no sooner, and each holds the weights once more.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._idle: LifoQueue[tuple[Any, int]] = LifoQueue()  # with the number of images that each is set to
        for _ in range(os.cpu_count() or 1):
            self._idle.put((None, 0))

    def __call__(self, images: Images) -> Probabilities:
        interpreter, count = self._idle.get()
        try:
            if interpreter is None:
                interpreter = self._new_interpreter()
            if count != len(images):
                count = 0  # should this fail
                interpreter.resize_tensor_input(self._input, images.shape)
                interpreter.allocate_tensors()
                count = len(images)
            interpreter.set_tensor(self._input, images)
            interpreter.invoke()
            probabilities: Probabilities = interpreter.get_tensor(self._output)
            return probabilities
        finally:
            self._idle.put((interpreter, count))

    def _new_interpreter(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=self._path, num_threads=1)
        self._input, self._output = (
            details[0]["index"] for details in (interpreter.get_input_details(), interpreter.get_output_details())
        )
        return interpreter


class KerasModel:
    """Gives probabilities by Keras's compiled call, one call at a time."""

    def __init__(self, path: Path, backend: str) -> None:
        os.environ.setdefault("KERAS_BACKEND", backend)
        import keras

        self._model = keras.saving.load_model(path, safe_mode=True)
        self._lock = threading.Lock()

    def __call__(self, images: Images) -> Probabilities:
        # A call is compiled for each number of images: so there are two, one and NUM_TOGETHER.
        missing = NUM_TOGETHER - len(images) if len(images) > 1 else 0
        padded = np.pad(images, ((0, missing), (0, 0), (0, 0)))
        with self._lock:
            probabilities: Probabilities = np.asarray(self._model.predict_on_batch(padded))
        return probabilities[: len(images)]


class ServedModel:
    """What MLflow calls."""

    def __init__(
        self,
        probabilities: Callable[[Images], Probabilities],
        *,
        class_names: list[str],
        image_shape: tuple[int, int],
        max_images: int,
    ) -> None:
        self._probabilities, self._class_names = probabilities, class_names
        self._image_shape, self._max_images = image_shape, max_images

    def predict(self, model_input: Any) -> list[dict[str, Any]]:
        """An answer for each image: `label`, `class_name`, `probabilities`, and a `warning` where there is one.

        Args:
            model_input: Pixels, 0-255: numbers `(batch, height, width)`; or a table with a column for each pixel,
                or with one column of images.

        Raises:
            RefusedInput: If it is anything else.
        """
        images = self._checked(_array(model_input, self._image_shape))
        warning = {"warning": WARNING} if images.max() <= 1 else {}
        starts = range(0, len(images), NUM_TOGETHER)
        parts = [self._probabilities(images[start : start + NUM_TOGETHER]) for start in starts]
        probabilities = np.concatenate(parts)
        return [
            {"label": label, "class_name": self._class_names[label], "probabilities": row, **warning}
            for label, row in zip(probabilities.argmax(axis=1).tolist(), probabilities.tolist(), strict=True)
        ]

    def _checked(self, images: NDArray[Any]) -> Images:
        shape = f"(n, {', '.join(map(str, self._image_shape))})"
        if images.dtype.kind not in "iuf":
            received = _RECEIVED.get(images.dtype.kind, "something else")
            raise RefusedInput(f"expected pixels as numbers of shape {shape}, received {received}")
        if images.size == 0 or (images.shape[1:] == self._image_shape and len(images) > self._max_images):
            count = f"{len(images):,}" if images.size else "none"
            raise RefusedInput(f"expected from 1 to {self._max_images:,} images in a request, received {count}")
        if images.shape[1:] != self._image_shape:
            raise RefusedInput(f"expected pixels of shape {shape}, received shape {images.shape}")
        low, high = images.min(), images.max()  # both are NaN if one value is
        if not (low >= 0 and high <= 255):
            received = "NaN" if np.isnan(low) else f"values from {low:g} to {high:g}"
            raise RefusedInput(f"expected pixels from 0 to 255, received {received}")
        return images.astype(np.float32)


def _array(model_input: Any, image_shape: tuple[int, int]) -> NDArray[Any]:
    """The input as an array of whatever shape and kind it has."""
    try:
        if not hasattr(model_input, "columns"):
            return np.asarray(model_input)
        if len(model_input.columns) == 1:  # images, or images as flat lists
            array = np.asarray([np.asarray(image) for image in model_input.iloc[:, 0]])
        else:
            array = model_input.to_numpy()
    except ValueError:
        raise RefusedInput("expected images of one size, received rows of several lengths") from None
    num_pixels = image_shape[0] * image_shape[1]
    return array.reshape(-1, *image_shape) if array.shape[1:] == (num_pixels,) else array


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ServedModel:
    """The model of a version's data folder, after it has answered once.

    Args:
        path: The folder.
        model_config: `max_images`, the most that one call takes.
    """
    folder = Path(path)
    about = json.loads((folder / ABOUT_FILE).read_text())
    probabilities: Callable[[Images], Probabilities]
    if (folder / LITERT_FILE).exists():
        probabilities = LiteRTModel(folder / LITERT_FILE)
    else:
        probabilities = KerasModel(folder / KERAS_FILE, about["keras_backend"])
    image_shape = tuple(about["image_shape"])
    for count in (1, NUM_TOGETHER):
        probabilities(np.zeros((count, *image_shape), np.float32))
    return ServedModel(
        probabilities,
        class_names=about["class_names"],
        image_shape=image_shape,
        max_images=(model_config or {}).get("max_images", MAX_IMAGES),
    )
