"""What the machine is and how it fares: its processor, instruction sets, GPU, memory, load, clock, energy.

Reads files and asks NVIDIA's library; imports nothing heavy. What can't be known is `unknown`, never 0.
"""

import hashlib
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil

Answer = TypeVar("Answer")

UNKNOWN = "unknown"
# What an NVIDIA or AMD driver puts there, on Linux and under WSL.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "jaxlib", "torch", "numpy", "mlflow")
_RAPL = Path("/sys/class/powercap")
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def num_threads() -> int:
    """CPU threads that this process may use; a container's quota or taskset may leave it fewer than there are."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(threads, _cpu_quota()))


def memory_bytes() -> int:
    """What this process holds of the machine's memory now."""
    return int(psutil.Process().memory_info().rss)


def free_memory_bytes() -> int:
    """What is left of the machine's memory, without swapping."""
    return int(psutil.virtual_memory().available)


def cpu_name() -> str:
    """The CPU's own name for itself, as far as the system tells."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """Those of `INSTRUCTION_SETS` that the CPU has, as Linux names them; none elsewhere."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 by itself."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(instruction_sets()))


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that take part, those that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code_digest(places: Sequence[str] = ("", "../entry_points")) -> str:
    """Names the content of the code: of all of it, or of some files and folders, as seen from this package."""
    package = Path(__file__).resolve().parent
    root, files = package.parent, list[Path]()
    for place in ((package / each).resolve() for each in places):
        files += [place] if place.suffix == ".py" else place.rglob("*.py")
    hasher = hashlib.sha256()
    for file in sorted(files):
        hasher.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return hasher.hexdigest()[:12]


def commit() -> str:
    """The git commit of this code, and a digest of the code where it differs or git doesn't know it."""
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root)]
    try:
        done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", "--", "fmnist", "entry_points"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return f"{UNKNOWN}+{code_digest()}"
    return done.stdout.strip() + (f"+{code_digest()}" if changed else "")


def facts() -> dict[str, str]:
    """What stays as it is for as long as the machine runs: two results compare only where these agree."""
    memory_gib = psutil.virtual_memory().total / 2**30
    gpu = _ask_gpu(
        lambda nvml, gpu: {
            "gpu": str(nvml.nvmlDeviceGetName(gpu)),
            "gpu_driver": str(nvml.nvmlSystemGetDriverVersion()),
            "gpu_memory_gib": f"{nvml.nvmlDeviceGetMemoryInfo(gpu).total / 2**30:.1f}",
        }
    )
    return {
        "cpu": cpu_name(),
        "cores": str(psutil.cpu_count(logical=False) or UNKNOWN),
        "threads": str(num_threads()),
        "instruction_sets": " ".join(instruction_sets()) or UNKNOWN,
        "memory_gib": f"{memory_gib:.1f}",
        "gpu": UNKNOWN if has_driver() and not hides_gpus() else "none",
        "gpu_driver": UNKNOWN,
        "gpu_memory_gib": UNKNOWN,
        **(gpu or {}),
        "system": f"{platform.system()} {platform.release()}",
    }


@dataclass(frozen=True)
class State:
    """How the machine fares at one moment; None where it doesn't tell."""

    load: float | None
    """Processes that ran or waited to, averaged over the last minute."""
    cpu_mhz: float | None


def state() -> State:
    """How the machine fares now."""
    try:
        load: float | None = os.getloadavg()[0]
    except OSError:
        load = None
    frequency = psutil.cpu_freq()
    return State(load, frequency.current if frequency and frequency.current else None)


def power_meter(kind: str) -> Callable[[], float | None]:
    """Starts to measure; what it gives, called later, is the mean power in watts since, or None if unknown.

    Of the CPU packages by RAPL, or by NVML of the GPU that CUDA puts first.
    """
    joules = _gpu_joules if kind == "gpu" else _cpu_joules
    before, start = joules(), time.perf_counter()

    def mean_watts() -> float | None:
        after, seconds = joules(), time.perf_counter() - start
        if before is None or after is None or after <= before:  # RAPL's counter turns over
            return None
        return (after - before) / seconds

    return mean_watts


def _cpu_joules() -> float | None:
    try:
        counters = [int(path.read_text()) for path in _RAPL.glob("intel-rapl:?/energy_uj")]
    except OSError:  # for root alone on most systems
        return None
    return sum(counters) / 1e6 if counters else None


def _gpu_joules() -> float | None:
    return _ask_gpu(lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3)


def has_driver() -> bool:
    """Whether a GPU's driver is to be seen."""
    return any(Path(file).exists() for file in DRIVER_FILES)


def hides_gpus() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every GPU."""
    return _first_visible() in ("", "-1")


def _first_visible() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()


def _ask_gpu(question: Callable[[Any, Any], Answer]) -> Answer | None:
    """What NVML says of the GPU that CUDA puts first; None if there is none, or it can't be said which it is.

    Args:
        question: Is given NVML and the GPU's handle.

    Source: CUDA C++ Programming Guide, CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER.
    """
    if hides_gpus():
        return None
    try:
        import pynvml as nvml
    except ImportError:  # it comes with the extra gpu
        return None
    first = _first_visible()
    try:
        nvml.nvmlInit()
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        if first.startswith("MIG-"):
            return question(nvml, nvml.nvmlDeviceGetHandleByUUID(first))
        if first.isdigit():
            # CUDA numbers them from the fastest on unless told otherwise, NVML by their slots.
            by_slot = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
            alike = len({nvml.nvmlDeviceGetName(gpu) for gpu in gpus}) == 1
            return question(nvml, gpus[int(first)]) if by_slot or alike else None
        (found,) = (gpu for gpu in gpus if nvml.nvmlDeviceGetUUID(gpu).startswith(first))
        return question(nvml, found)
    except (nvml.NVMLError, IndexError, ValueError):
        return None


def _cpu_quota() -> float:
    """How many CPUs' time the groups of this process may take together; infinite where nothing limits it.

    Source: cgroups(7), cpu.max of version 2 and cpu.cfs_quota_us of version 1.
    """
    quotas = [math.inf]
    for line in _text(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _GROUPS / "cpu" if controllers else _GROUPS
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        # A group has what those above it leave. In a container the path may be the host's: the root is its own.
        for group in (root / path.lstrip("/"), *(root / path.lstrip("/")).parents):
            values = " ".join(_text(group / name) for name in names).split()
            if len(values) == 2 and values[0].isdigit():
                quotas.append(int(values[0]) / int(values[1]))
    return min(quotas)


def _cpuinfo(key: str) -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.partition(":")[0].strip() == key:
            return line.partition(":")[2].strip()
    return ""


def _text(path: Path) -> str:
    """A file of the system's; nothing where the system has none such."""
    try:
        return path.read_text()
    except OSError:
        return ""


def environment() -> dict[str, Any]:
    """All that a measurement needs to be believed and compared."""
    return {"machine": facts(), "versions": versions(), "commit": commit()}
