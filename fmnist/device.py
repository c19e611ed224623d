"""Which device computes, and what the machine is: asked for, looked for, and recorded.

A device is fixed at first use, for the whole process: call `refuse_missing_gpu` before anything heavy is
imported and `select` before the first array is made.
"""

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
_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "numpy", "mlflow")


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


def refuse_missing_gpu(requested: str) -> None:
    """Refuses `gpu` at once where no driver of one is to be seen; imports nothing.

    Raises:
        FmnistError: If a GPU was asked for and there is no sign of one.
    """
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


def select(requested: str) -> Device:
    """Fixes the device of this process.

    Raises:
        FmnistError: If a GPU was asked for and TensorFlow sees none.
    """
    with _quiet_import():
        import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if requested == "gpu" and not gpus:
        raise FmnistError(
            f"device=gpu: a driver is there, but TensorFlow {tf.__version__} sees no GPU. Install the build "
            "with CUDA (pip install 'fmnist[gpu]'; tensorflow-cpu never sees one), or type -P device=cpu"
        )
    on_gpu = bool(gpus) and requested != "cpu"
    if on_gpu:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unknown GPU")
        tf.config.set_visible_devices(gpus[:1], "GPU")
        tf.config.experimental.set_memory_growth(gpus[0], True)
    else:
        name = cpu_name()
        tf.config.set_visible_devices([], "GPU")
        # Without it, sums that several threads share come out in whatever order the threads end.
        # On a CPU it costs nothing that can be measured; on a GPU it would.
        tf.config.experimental.enable_op_determinism()
    return Device("gpu" if on_gpu else "cpu", name, num_threads(), versions())


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
