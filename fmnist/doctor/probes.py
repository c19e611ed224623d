"""What is looked at in a process of its own: libraries, a backend, the caches, the data; a function for each."""

import importlib
import os
import re
import shutil
import time
from importlib.metadata import version
from pathlib import Path

from fmnist import cache, checkpoint, device, machine
from fmnist.data import datasets, download, splits
from fmnist.doctor.report import MENDED, NOTE, OK, WRONG, Check, command, size, space, unwritable
from fmnist.errors import FmnistError

# What a training imports beside TensorFlow and MLflow, and is quick to load.
LIBRARIES = ("numpy", "scipy.special", "matplotlib.figure", "PIL.Image", "psutil", "filelock", "click", "tqdm")
DATASET = "fashion-mnist"
STALE_SECONDS = 24 * 3600


def libraries() -> list[Check]:
    """Whether what is installed can be loaded; and LiteRT, which serves models."""
    failing = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            failing.append(f"{name}: {error}")
    checks = [Check("libraries", OK, "load")]
    if failing:
        names = " ".join(text.partition(":")[0].partition(".")[0] for text in failing)
        checks = [Check("libraries", WRONG, "; ".join(failing), f"pip install --force-reinstall {names}")]
    try:
        importlib.import_module("ai_edge_litert.interpreter")
    except (ImportError, OSError) as error:
        found = f"can't be loaded ({error}): models are served by Keras, slower"
        return [*checks, Check("LiteRT", NOTE, found, "pip install --force-reinstall ai-edge-litert")]
    return [*checks, Check("LiteRT", OK, version("ai-edge-litert"))]


def backend(name: str) -> list[Check]:
    """Whether a backend computes, on what, and if that is no GPU, why not."""
    why = ""
    try:
        device.refuse_missing("gpu", name)
        used = device.select("gpu", name)
    except FmnistError as reason:
        why = str(reason).removeprefix("device=gpu: ")
        used = device.select("auto", name)
    if name == "tensorflow":
        device.try_out()
    facts, versions = machine.facts(), used.versions
    number = next(versions[each] for each in (name, f"{name}-cpu") if each in versions)
    found = f"{number}, with Keras {versions['keras']}, computes on {used.kind} ({used.name}, "
    found += f"{used.num_threads} threads)"
    if used.kind == "gpu":
        gpu = f"{used.name}, driver {facts['gpu_driver']}, {facts['gpu_memory_gib']} GiB"
        return [Check(name, OK, found), Check(f"GPU for {name}", OK, gpu)]
    told = name == "tensorflow" or machine.has_driver()  # once is enough where there is none
    return [Check(name, OK, found), *([Check(f"GPU for {name}", NOTE, why)] if told else [])]


def caches(*, fix: bool) -> list[Check]:
    """Whether the cache can be written, how large it is, and what is broken in it."""
    folder = cache.folder()
    reason = unwritable(folder)
    if reason:
        return [Check("cache", WRONG, reason, "export FMNIST_CACHE_DIR=FOLDER")]
    lock = folder / "doctor.lock"
    if folder.exists():
        held = cache.hold(lock)
        if held:
            held.release()
            lock.unlink(missing_ok=True)
    sizes = {each.name: _num_bytes(each) for each in sorted(folder.glob("*/"))}
    parts = ", ".join(f"{name} {size(num_bytes)}" for name, num_bytes in sizes.items())
    checks = [
        Check("cache", OK, f"{size(sum(sizes.values()))} in {folder}{f' ({parts})' if parts else ''}"),
        space("disk (cache)", folder),
    ]
    broken = _broken(folder)
    if broken and fix:
        for path in broken:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        checks.append(Check("cache entries", MENDED, f"took away, to be made anew: {_names(broken, folder)}"))
    elif broken:
        found = f"broken, and made anew when needed: {_names(broken, folder)}"
        checks.append(Check("cache entries", NOTE, found, command("doctor", pairs="-P fix=true")))
    return checks


def data() -> list[Check]:
    """Whether the official files are there and whole, or can be had."""
    harmed: list[str] = []
    if os.environ.get("FMNIST_DATA_DIR"):
        named = Path(os.environ["FMNIST_DATA_DIR"]).expanduser()
        if not named.is_dir():
            found = f"FMNIST_DATA_DIR names {named}, which is no folder"
            return [Check("data", WRONG, found, "unset FMNIST_DATA_DIR")]
        for folder in (named, named / DATASET):
            states = datasets.states(DATASET, folder)
            if set(states.values()) == {datasets.WHOLE}:
                return [Check("data", OK, f"the four files of {DATASET} are whole in {folder}")]
            if set(states.values()) != {datasets.MISSING}:
                break
        harmed += [f"{folder / file} is {state}" for file, state in states.items() if state != datasets.WHOLE]
    downloads = cache.folder() / "downloads" / DATASET
    states = datasets.states(DATASET, downloads)
    if set(states.values()) == {datasets.WHOLE}:
        found = f"the four files of {DATASET} are whole in {downloads}"
        if harmed:
            text = f"FMNIST_DATA_DIR is passed over: {'; '.join(harmed)}. {found[0].upper()}{found[1:]}"
            return [Check("data", NOTE, text, "unset FMNIST_DATA_DIR, or put the four official files there")]
        return [Check("data", OK, found)]
    harmed += [f"{downloads / file} is {state}" for file, state in states.items() if state == datasets.HARMED]
    absent = next(file for file, state in states.items() if state != datasets.WHOLE)
    mirror = download.reachable(datasets.official(DATASET)[1], absent)
    found = "; ".join([*harmed, f"{DATASET} isn't there whole yet"])
    if mirror:
        return [Check("data", NOTE, f"{found}; the first training gets it from {mirror}")]
    return [
        Check(
            "data",
            WRONG,
            f"{found}, and no mirror answers: put the four .gz files into {downloads}, or a folder that you name",
            "export FMNIST_DATA_DIR=FOLDER, or train on made-up images with -P dataset=synthetic",
        )
    ]


def _broken(folder: Path) -> list[Path]:
    """What in the cache can't be read, or was left by a process that was killed, and nobody is at."""
    prepared = [path for path in folder.glob("prepared/*-*/") if re.fullmatch(r"[^.].*-[0-9a-f]{16}", path.name)]
    broken = [path for path in prepared if splits.read_prepared(path, ()) is None]
    own = r".+\.([0-9a-f]{8}|\d+)\.part"  # a person may have files of that name in the folder, too
    left = [path for path in folder.glob("**/*.part") if re.fullmatch(own, path.name)]
    left += folder.glob("prepared/.new-*")
    broken += [path for path in left if time.time() - path.stat().st_mtime > STALE_SECONDS]
    for downloads in folder.glob("downloads/*/"):
        states = datasets.states(downloads.name, downloads)
        broken += [downloads / file for file, state in states.items() if state == datasets.HARMED]
    return broken + checkpoint.unreadable()


def _names(paths: list[Path], folder: Path) -> str:
    return ", ".join(str(path.relative_to(folder)) for path in paths)


def _num_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
