"""What the machine says of itself: threads under a quota, the GPU that CUDA takes, the code that ran."""

import importlib.util
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from fmnist import device, machine


class NvmlError(Exception):
    """As NVML raises it."""


def nvml_of(names):
    """NVML as `pynvml` has it, with GPUs of these names in the order of their slots, the last one a MIG too."""

    def by_uuid(uuid):
        if uuid != "MIG-7":
            raise NvmlError("not found")
        return len(names) - 1

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetUUID=lambda gpu: f"GPU-{gpu}a{gpu}b",
        nvmlDeviceGetName=lambda gpu: names[gpu],
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(total=(gpu + 1) * 2**30),
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: 1000 * (gpu + 1),
    )


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A machine with a GPU's driver and no setting of CUDA's."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(machine, "DRIVER_FILES", (str(tmp_path / "nvidiactl"),))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


ALIKE, MIXED = ("H200", "H200", "H200"), ("T400", "H200", "H100")


@pytest.mark.parametrize(
    ("names", "settings", "memory_gib"),
    [
        (ALIKE, {}, "1.0"),
        (ALIKE, {"CUDA_VISIBLE_DEVICES": "2,0"}, "3.0"),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "2.0"),
        (
            MIXED,
            {"CUDA_VISIBLE_DEVICES": "1"},
            "unknown",
        ),  # CUDA counts from the fastest, NVML from the first slot
        (MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-2a"}, "3.0"),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-"}, "unknown"),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "MIG-7"}, "3.0"),
        (MIXED, {"CUDA_VISIBLE_DEVICES": "MIG-8"}, "unknown"),
        (ALIKE, {"CUDA_VISIBLE_DEVICES": "3"}, "unknown"),
    ],
)
def test_the_gpu_and_its_energy_are_of_the_one_that_cuda_puts_first(
    driver, monkeypatch, names, settings, memory_gib
):
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(names))
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    facts, joules = machine.facts(), machine._gpu_joules()
    assert facts["gpu_memory_gib"] == memory_gib
    if memory_gib == "unknown":
        assert (facts["gpu"], joules) == ("unknown", None)
    else:
        assert (facts["gpu"], joules) == (names[int(joules) - 1], float(memory_gib))


def test_a_gpu_without_nvml_is_unknown_and_a_hidden_one_is_none(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.facts()["gpu"] == "unknown"
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(ALIKE))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert (machine.facts()["gpu"], machine.power_meter("gpu")()) == ("none", None)


@pytest.mark.parametrize(
    ("groups", "files", "threads"),
    [
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 1),
        ("0::/of/the/host\n", {"cpu.max": "20000 100000\n"}, 1),
        (
            "5:memory:/x\n1:cpuacct,cpu:/docker/1\n",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("", {}, 8),
    ],
)
def test_threads_are_no_more_than_a_containers_quota_is_worth(tmp_path, monkeypatch, groups, files, threads):
    (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.num_threads() == threads


@pytest.fixture
def checkout(tmp_path):
    """A git checkout of its own, and the module `machine` of it."""
    for folder in ("fmnist", "entry_points"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "fmnist" / "machine.py", tmp_path / "fmnist")
    (tmp_path / "entry_points" / "cell.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "All"]):
        subprocess.run([*git, *words], check=True)
    spec = importlib.util.spec_from_file_location("machine_of_checkout", tmp_path / "fmnist" / "machine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tmp_path, module


@pytest.mark.parametrize("file", ["fmnist/other.py", "entry_points/cell.py"])
def test_a_commit_with_changes_is_named_by_what_the_changes_are(checkout, file):
    folder, own_machine = checkout
    clean = own_machine.commit()
    names = []
    for text in ("A = 1\n", "A = 2\n", "A = 1\n"):
        (folder / file).write_text(text)
        names.append(own_machine.commit())
    assert len(clean) == 40
    assert all(name.startswith(f"{clean}+") for name in names)
    assert names[0] == names[2] != names[1]


def test_float32_is_float32_on_jax_too():
    code = """
from fmnist import device
used = device.select("cpu", "jax", stock=True)
print(device.conditions(used, "jax", batch_parts=1, xla=True))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = device.Conditions(1, "auto", "auto", None, xla=True, tf32=False)
    assert done.stdout.strip() == str(expected)
