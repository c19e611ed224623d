"""The flavour of our model versions: Keras's own, and a `python_function` that serves without Keras.

MLflow logs with it as with its own flavours: by calling `save_model`.
"""

import hashlib
import importlib.util
import json
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import Array, DataType
from numpy.typing import NDArray

from fmnist.evaluation.strangeness import FILE as STRANGENESS_FILE
from fmnist.evaluation.strangeness import Strangeness
from fmnist.serving import loader
from fmnist.serving.conversion import ConversionError, as_float32, to_litert

if TYPE_CHECKING:
    import keras

TOLERANCE = 1e-5
NUM_CHECKED = 256
# What MLflow's server needs; all of `mlflow` would be 40 packages more. It takes the last two, with which it is
# faster, where they are installed.
_SERVER = ("mlflow-skinny", "fastapi", "uvicorn", "pandas", "numpy", "httptools", "uvloop")
_KERAS = {"tensorflow": ("keras", "tensorflow", "tensorflow-cpu"), "jax": ("keras", "jax", "jaxlib")}


def save_model(
    path: str,
    mlflow_model: Model,
    *,
    model: "keras.Model",
    class_names: tuple[str, ...],
    check_images: NDArray[np.uint8],
    strangeness: Strangeness | None = None,
) -> None:
    """Writes a model with both flavours into a folder.

    The Keras model is saved as it computes in float32; `mlflow_model.metadata["serving"]` says how it is served.

    Args:
        path: The folder.
        mlflow_model: What MLflow knows of the model; is added to.
        model: Takes float32 `(batch, height, width)`, 0-255; gives probabilities `(batch, classes)`.
        class_names: Of the classes, in their order.
        check_images: `(batch, height, width)`, on which the served model must agree with the Keras model.
        strangeness: How far an image is from those that the model was trained on.
    """
    import keras

    saved, backend = as_float32(model), keras.backend.backend()
    image_shape = saved.input_shape[1:]
    with TemporaryDirectory() as folder:
        about = {"class_names": class_names, "image_shape": image_shape, "keras_backend": backend}
        (Path(folder) / loader.ABOUT_FILE).write_text(json.dumps(about))
        if strangeness:
            strangeness.write(Path(folder) / STRANGENESS_FILE)
        serving = _convert(saved, Path(folder), check_images[:NUM_CHECKED])
        if saved is not model:
            pixels = check_images[:NUM_CHECKED].astype(np.float32)
            serving["bfloat16_difference"] = _difference(
                _probabilities(model, pixels), _probabilities(saved, pixels)
            )
        keras_requirements = _pinned(*_KERAS[backend], "numpy")
        runtime = ("ai-edge-litert",) if serving["runtime"] == "litert" else _KERAS[backend]
        float32 = np.dtype(np.float32)
        mlflow.keras.save_model(
            saved,
            path,
            mlflow_model=mlflow_model,
            signature=ModelSignature(
                inputs=Schema([TensorSpec(float32, (-1, *image_shape))]),
                outputs=Schema([TensorSpec(float32, (-1, len(class_names)))]),
            ),
            pip_requirements=_pinned(*_SERVER, *runtime),
        )
        shutil.copytree(folder, Path(path, "data"), dirs_exist_ok=True)
    code = Path(loader.__file__).read_bytes()
    # Python keeps one module of a name: a process that loads two versions must not mix up their loaders.
    module = f"fmnist_loader_{hashlib.sha256(code).hexdigest()[:8]}"
    Path(path, "code").mkdir()
    Path(path, "code", f"{module}.py").write_bytes(code)
    # With an input signature MLflow refuses what doesn't fit it by printing all that it received, and takes text
    # for numbers. Without one it hands JSON over as it is, and the loader says in one sentence what is wrong.
    probabilities = Array(DataType.float)
    mlflow_model.signature = ModelSignature(
        outputs=Schema(
            [ColSpec("long", "label"), ColSpec("string", "class_name"), ColSpec(probabilities, "probabilities")]
        )
    )
    mlflow_model.flavors["keras"]["pip_requirements"] = keras_requirements
    mlflow_model.flavors["python_function"].update(
        loader_module=module, code="code", data="data", config={"max_images": loader.MAX_IMAGES}
    )
    mlflow_model.metadata = (mlflow_model.metadata or {}) | {
        "class_names": list(class_names),
        "input": f"pixels from 0 to 255, (n, {', '.join(map(str, image_shape))})",
        "serving": serving,
    }
    mlflow_model.model_size_bytes = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    mlflow_model.save(str(Path(path, "MLmodel")))


def _convert(model: "keras.Model", folder: Path, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Puts a LiteRT model into a version's data folder if it agrees with Keras; says which runtime will serve."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        return {"runtime": "keras", "reason": "ai-edge-litert isn't installed"}
    path = folder / loader.LITERT_FILE
    try:
        path.write_bytes(to_litert(model))
        served = loader._load_pyfunc(str(folder)).predict(images)
    except (ConversionError, RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)
        return {"runtime": "keras", "reason": str(error)}
    expected = _probabilities(model, images.astype(np.float32))
    difference = _difference(np.array([answer["probabilities"] for answer in served]), expected)
    if difference <= TOLERANCE:
        return {"runtime": "litert", "difference": difference}
    path.unlink()
    reason = f"LiteRT's probabilities differ from Keras's by {difference:.1e}, more than {TOLERANCE:.0e}"
    return {"runtime": "keras", "reason": f"{reason}, on {len(images)} images"}


def _probabilities(model: "keras.Model", pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    from keras import ops

    return np.asarray(ops.convert_to_numpy(model(pixels, training=False)))


def _difference(probabilities: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(probabilities - expected).max())


def _pinned(*packages: str) -> list[str]:
    pins = []
    for name in packages:
        with suppress(PackageNotFoundError):
            pins.append(f"{name}=={version(name)}")
    return pins
