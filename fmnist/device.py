"""Which device computes: asked for, looked for, and recorded.

A device is fixed at first use, for the whole process: call `refuse_missing` before anything heavy is
imported and `select` before the first array is made.
"""

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fmnist import machine
from fmnist.errors import FmnistError
from fmnist.options import AUTO


@dataclass(frozen=True)
class Device:
    """The device that really computes."""

    kind: str
    """`cpu` or `gpu`."""
    name: str
    num_threads: int
    """Threads of the CPU that the process may use."""
    has_bfloat16: bool
    """Whether it multiplies bfloat16 by itself, and faster than float32."""
    versions: dict[str, str]
    """Installed versions, of Python and of the libraries that take part."""
    deterministic: bool | None = None
    """Whether TensorFlow's deterministic operations are on; None: JAX has no such switch."""


@dataclass(frozen=True)
class Conditions:
    """What a device computes under: two times are of one thing only where these agree."""

    batch_parts: int
    intra_op_threads: str
    inter_op_threads: str
    """Of TensorFlow's or PyTorch's pools; `auto`: as many as the library likes, of which JAX says nothing."""
    deterministic: bool | None
    """As in `Device`."""
    xla: bool
    """Whether XLA compiles a training step."""
    tf32: bool
    """Whether a GPU may round the factors of a product in float32 to 10 bits."""


def refuse_missing(requested: str, backend: str) -> None:
    """Refuses at once what isn't installed, and `gpu` where no driver of one is to be seen; imports nothing.

    Raises:
        FmnistError: If the backend isn't installed, or a GPU was asked for and there is no sign of one.
    """
    if importlib.util.find_spec(backend) is None:
        if backend == "torch":
            raise FmnistError("trainers=torch: PyTorch isn't installed; type: pip install '.[peers]'")
        extra = "jax" if backend == "jax" else "cpu"
        raise FmnistError(f"backend={backend}: it isn't installed; type: pip install '.[{extra}]'")
    if requested != "gpu" or platform.system() != "Linux":
        return
    if machine.hides_gpus():
        raise FmnistError("device=gpu: CUDA_VISIBLE_DEVICES hides every GPU; unset it, or type -P device=cpu")
    if not machine.has_driver():
        raise FmnistError(
            f"device=gpu: no GPU is visible: none of {', '.join(machine.DRIVER_FILES)} is there. Install the "
            "GPU's driver (nvidia-smi must list it; in a container, start it with --gpus all), "
            "or type -P device=cpu"
        )


def expected(requested: str) -> str:
    """The kind of device that `select` will give, as far as a driver tells; imports nothing."""
    if requested != AUTO:
        return requested
    return "gpu" if machine.has_driver() and not machine.hides_gpus() else "cpu"


def select(requested: str, backend: str, *, stock: bool = False) -> Device:
    """Fixes the backend and the device of this process.

    `stock` leaves the backend as its maker delivers it, for a fair reference; else, on a CPU, what is
    computed twice comes out equal bit for bit. Either way float32 is float32, without TF32.

    Raises:
        FmnistError: If a GPU was asked for and the backend sees none.
    """
    os.environ["KERAS_BACKEND"] = backend
    if backend == "torch":
        gpu = _select_torch(requested)
    else:
        gpu = _select_jax(requested) if backend == "jax" else _select_tensorflow(requested, stock)
    if requested == "gpu" and gpu is None:
        raise FmnistError(
            f"device=gpu: a driver is there, but {backend} sees no GPU. Install its build with CUDA "
            "(pip install 'tensorflow[and-cuda]' or 'jax[cuda12]'; tensorflow-cpu and torch+cpu never see one), "
            "or type -P device=cpu"
        )
    kind = "gpu" if gpu else "cpu"
    name, has_bfloat16 = gpu or (machine.cpu_name(), machine.has_bfloat16())
    switched_on = backend == "tensorflow" and kind == "cpu" and not stock
    deterministic = None if backend == "jax" else switched_on
    return Device(kind, name, machine.num_threads(), has_bfloat16, machine.versions(), deterministic)


def conditions(device: Device, backend: str, *, batch_parts: int, xla: bool) -> Conditions:
    """What this process computes under, as the backend says it; to be asked after the first array."""
    if backend == "jax":
        import jax

        pools = 0, 0
        tf32 = jax.config.jax_default_matmul_precision != "highest"  # type: ignore[attr-defined]  # it has
    elif backend == "torch":
        import torch

        pools = torch.get_num_threads(), torch.get_num_interop_threads()
        tf32 = torch.backends.cudnn.allow_tf32
    else:
        import tensorflow as tf

        threading = tf.config.threading
        pools = threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()
        tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    intra, inter = (str(threads or AUTO) for threads in pools)
    return Conditions(batch_parts, intra, inter, device.deterministic, xla, tf32)


def try_out() -> None:
    """Computes a convolution, as the first layer of a model would; to be called after `select`."""
    import keras
    import numpy as np

    image, kernel = np.ones((1, 8, 8, 1), np.float32), np.ones((3, 3, 1, 1), np.float32)
    keras.ops.convert_to_numpy(keras.ops.conv(image, kernel))


def batch_parts(device: Device, backend: str, precision: str) -> int:
    """In how many parts the compiled trainer is to work on a batch side by side, each on a thread of its own.

    On two threads of a CPU, halves are faster than both threads on every operation, in float32; on one there
    is nothing side by side; more have not been measured. Shown by
    `-e benchmark -P models=mlp,lenet,cnn64 -P trainers=compiled -P batch_parts=1,2`, with `taskset -c 0` before it
    for one thread.
    """
    halves = (device.kind, device.num_threads, backend, precision) == ("cpu", 2, "tensorflow", "float32")
    return 2 if halves else 1


def whole_batches_only(model: str) -> FmnistError:
    """The error for a model whose layers use a batch as a whole, as its mean and variance."""
    return FmnistError(f"batch_parts: {model} has a layer that looks across the batch; type -P batch_parts=1")


def set_batch_parts(parts: int, device: Device, backend: str) -> None:
    """Gives each part of a batch its share of the CPU's threads; to be called before the first array."""
    if parts > 1 and backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(max(device.num_threads // parts, 1))
        tf.config.threading.set_inter_op_parallelism_threads(parts)


def _select_tensorflow(requested: str, stock: bool) -> tuple[str, bool] | None:
    """Fixes TensorFlow's device; gives the GPU's name and whether it has bfloat16, or None for the CPU."""
    with _lean_import():
        import keras  # noqa: F401  # which imports TensorFlow
        import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and requested != "cpu":
        tf.config.set_visible_devices(gpus[:1], "GPU")
        tf.config.experimental.set_memory_growth(gpus[0], True)
        details = tf.config.experimental.get_device_details(gpus[0])
        return str(details.get("device_name", machine.UNKNOWN)), details.get("compute_capability", (0,)) >= (8,)
    tf.config.set_visible_devices([], "GPU")
    if not stock:
        # Without it, sums that several threads share come out in whatever order the threads end.
        tf.config.experimental.enable_op_determinism()
    return None


def _select_jax(requested: str) -> tuple[str, bool] | None:
    """Fixes JAX's device; gives the GPU's name and whether it has bfloat16, or None for the CPU."""
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]  # else TF32
    if requested == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]  # JAX has no type for it
    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    major, *_ = str(getattr(device, "compute_capability", "")).split(".")  # an AMD GPU's is a name
    return str(device.device_kind), major.isdecimal() and int(major) >= 8


def _select_torch(requested: str) -> tuple[str, bool] | None:
    """Fixes PyTorch's device; gives the GPU's name and whether it has bfloat16, or None for the CPU."""
    if requested == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(machine.num_threads())
    torch.backends.cudnn.allow_tf32 = False  # products are without it by default
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), torch.cuda.get_device_capability() >= (8,)


@contextmanager
def _lean_import() -> Iterator[None]:
    """Lets TensorFlow and Keras load without what they take along if it is there, and without a word.

    scikit-learn (for wrappers that nobody here uses) and JAX (for a converter) take a third of their time. What
    TensorFlow's libraries write to stderr while they load, no setting of theirs stops.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # for later: errors only
    hidden = {name for name in ("sklearn", "jax") if name not in sys.modules}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it fails
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        for name in hidden:
            del sys.modules[name]
