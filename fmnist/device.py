"""Which device computes, and what the machine is: asked for, looked for, and recorded.

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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fmnist.errors import FmnistError

# What an NVIDIA or AMD driver puts there, on Linux and under WSL.
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "jaxlib", "numpy", "mlflow")


@dataclass(frozen=True)
class Device:
    """The device that really computes."""

    kind: str
    """`cpu` or `gpu`."""
    name: str
    num_threads: int
    """Threads of the CPU that the process may use."""
    versions: dict[str, str]
    """Installed versions, of Python and of the libraries that take part."""


def refuse_missing(requested: str, backend: str) -> None:
    """Refuses at once what isn't installed, and `gpu` where no driver of one is to be seen; imports nothing.

    Raises:
        FmnistError: If the backend isn't installed, or a GPU was asked for and there is no sign of one.
    """
    if importlib.util.find_spec(backend) is None:
        extra = "jax" if backend == "jax" else "cpu"
        raise FmnistError(f"backend={backend}: it isn't installed; type: pip install '.[{extra}]'")
    if requested != "gpu" or platform.system() != "Linux":
        return
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        raise FmnistError("device=gpu: CUDA_VISIBLE_DEVICES hides every GPU; unset it, or type -P device=cpu")
    if not any(Path(file).exists() for file in _DRIVER_FILES):
        raise FmnistError(
            f"device=gpu: no GPU is visible: none of {', '.join(_DRIVER_FILES)} is there. Install the GPU's "
            "driver (nvidia-smi must list it; in a container, start it with --gpus all), "
            "or type -P device=cpu"
        )


def select(requested: str, backend: str) -> Device:
    """Fixes the backend and the device of this process.

    Raises:
        FmnistError: If a GPU was asked for and the backend sees none.
    """
    os.environ["KERAS_BACKEND"] = backend
    gpu_name = (_select_jax if backend == "jax" else _select_tensorflow)(requested)
    if requested == "gpu" and gpu_name is None:
        raise FmnistError(
            f"device=gpu: a driver is there, but {backend} sees no GPU. Install its build with CUDA "
            "(pip install 'tensorflow[and-cuda]' or 'jax[cuda12]'; tensorflow-cpu never sees one), "
            "or type -P device=cpu"
        )
    kind, name = ("gpu", gpu_name) if gpu_name else ("cpu", cpu_name())
    return Device(kind, name, num_threads(), versions())


def _select_tensorflow(requested: str) -> str | None:
    """Fixes TensorFlow's device; gives the GPU's name, or None for the CPU."""
    with _quiet_import():
        import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus and requested != "cpu":
        tf.config.set_visible_devices(gpus[:1], "GPU")
        tf.config.experimental.set_memory_growth(gpus[0], True)
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unknown GPU"))
    tf.config.set_visible_devices([], "GPU")
    # Without it, sums that several threads share come out in whatever order the threads end. On a CPU it
    # costs nothing that can be measured; on a GPU it would.
    tf.config.experimental.enable_op_determinism()
    return None


def _select_jax(requested: str) -> str | None:
    """Fixes JAX's device; gives the GPU's name, or None for the CPU."""
    import jax

    if requested == "cpu":
        jax.config.update("jax_platforms", "cpu")  # type: ignore[no-untyped-call]
    device = jax.devices()[0]
    return None if device.platform == "cpu" else str(device.device_kind)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Drops what TensorFlow's libraries write to stderr while they load, which no setting of theirs stops."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # for later: errors only
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def num_threads() -> int:
    """CPU threads that this process may use; a container or taskset may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The CPU's own name for itself, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that take part, those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
