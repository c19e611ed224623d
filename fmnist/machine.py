"""What the machine is and how it fares: its processor, instruction sets, GPU, memory, load, clock, energy.

Reads files and asks NVIDIA's library; imports nothing heavy. What can't be known is `unknown`, never 0.
"""

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

UNKNOWN = "unknown"
# What an NVIDIA or AMD driver puts there, on Linux and under WSL.
DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
INSTRUCTION_SETS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu", "jax", "jaxlib", "numpy", "mlflow")
_RAPL = Path("/sys/class/powercap")


def num_threads() -> int:
    """CPU threads that this process may use; a container or taskset may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """What this process holds of the machine's memory now."""
    return int(psutil.Process().memory_info().rss)


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


def code_digest(places: Sequence[str] = ("",)) -> str:
    """Names the content of this package's code: of all of it, or of some of its files and folders."""
    root = Path(__file__).parent
    files = [
        file
        for place in places
        for file in ([root / place] if place.endswith(".py") else (root / place).rglob("*.py"))
    ]
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
    gpu = _nvidia()
    return {
        "cpu": cpu_name(),
        "cores": str(psutil.cpu_count(logical=False) or UNKNOWN),
        "threads": str(num_threads()),
        "instruction_sets": " ".join(instruction_sets()) or UNKNOWN,
        "memory_gib": f"{memory_gib:.1f}",
        "gpu": gpu["name"] if gpu else "none" if not _has_driver() else UNKNOWN,
        "gpu_driver": gpu["driver"] if gpu else UNKNOWN,
        "gpu_memory_gib": gpu["memory_gib"] if gpu else UNKNOWN,
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

    Of the CPU packages by RAPL, or of the first GPU by NVML.
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
    try:
        import pynvml

        pynvml.nvmlInit()
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0))) / 1e3
    except (ImportError, OSError):
        return None
    except pynvml.NVMLError:
        return None


def _nvidia() -> dict[str, str] | None:
    """Name, driver and memory of the first GPU, by NVIDIA's own command."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
    name, driver, mebibytes = (piece.strip() for piece in line.split(","))
    return {"name": name, "driver": driver, "memory_gib": f"{float(mebibytes) / 1024:.1f}"}


def _has_driver() -> bool:
    return any(Path(file).exists() for file in DRIVER_FILES)


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.partition(":")[0].strip() == key:
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return ""


def environment() -> dict[str, Any]:
    """All that a measurement needs to be believed and compared."""
    return {"machine": facts(), "versions": versions(), "commit": commit()}
