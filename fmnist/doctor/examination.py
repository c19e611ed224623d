"""Looks at everything, what may crash in processes of its own; needs the standard library alone."""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from fmnist.doctor.report import MENDED, NOTE, OK, WRONG, Check, command

ROOT = Path(__file__).parents[2]
PYTHONS = ((3, 11), (3, 14))
# What is looked at in a process of its own, what must be installed for that, and whether a training needs it.
PROBES = {
    "libraries": ("numpy", True),
    "tensorflow": ("tensorflow", True),
    "jax": ("jax", False),
    "store": ("mlflow", True),
    "caches": ("platformdirs", True),
    "data": ("platformdirs", True),
}
# What the project asks for and a training does without.
SPARE = {
    "optuna",
    "cmaes",
    "opencv-python-headless",
    "scikit-learn",
    "plotly",
    "ai-edge-litert",
    "httptools",
    "uvloop",
    "tensorboard",
}
EXTRAS = {"jax": "jax", "psycopg": "postgres", "ray": "ray", "torch": "peers", "pytest": "dev"}
PATIENCE_SECONDS = 90
LOCK_SECONDS = 3600  # many times what it takes to make the environment


def examine(*, fix: bool) -> list[Check]:
    """All that there is to say; with `fix`, after what can safely be mended was."""
    with ThreadPoolExecutor(len(PROBES)) as pool:
        probed = pool.map(lambda name: _probe(name, fix=fix), PROBES)
        checks = [_python(), _packages(), _extras(), *_lock(fix=fix)]
        return [*checks, *(check for found in probed for check in found)]


def _python() -> Check:
    version = f"{platform.python_version()}, {sys.executable}"
    low, high = PYTHONS
    if low <= sys.version_info[:2] < high:
        return Check("Python", OK, version)
    return Check("Python", WRONG, f"{version}; expected 3.11, 3.12 or 3.13", "PYTHON=python3.11 ./run train")


def _packages() -> Check:
    """Whether what pyproject.toml asks for is installed, in the versions that it allows."""
    missing, other = [], []
    required, builds = _required()
    for text in required:
        name, found, allowed = _installed(text)
        if found is None:
            missing.append(name)
        elif not allowed:
            other.append(f"{name} {found} (expected {text.partition(';')[0].strip()})")
    if not any(_installed(text)[2] for text in builds):
        missing.append("tensorflow")
    install = f"{os.environ['FMNIST_RUN']}train" if "FMNIST_RUN" in os.environ else "pip install -e '.[cpu]'"
    if missing or other:
        parts = [f"not installed: {', '.join(missing)}"] if missing else []
        if {"mlflow", "keras", "numpy", "tensorflow"} <= set(missing):
            parts = [
                "nothing is installed yet" + (": ./run does so at first use" if "FMNIST_RUN" in os.environ else "")
            ]
        needed = {name for name in (*missing, *(text.partition(" ")[0] for text in other)) if name not in SPARE}
        return Check("packages", WRONG if needed else NOTE, "; ".join([*parts, *other]), install)
    return Check("packages", OK, f"{len(required) + 1} installed, in versions that the project allows")


def _required() -> tuple[list[str], list[str]]:
    """What is always needed; and builds of TensorFlow, one of which is."""
    file = ROOT / "pyproject.toml"
    if file.exists():
        project = tomllib.loads(file.read_text())["project"]
        extras = project["optional-dependencies"]
        return project["dependencies"], [text for extra in ("cpu", "gpu") for text in extras[extra][:2]]
    texts = metadata.requires("fmnist") or []
    return [text for text in texts if "extra ==" not in text], [text for text in texts if "tensorflow" in text]


def _installed(requirement: str) -> tuple[str, str | None, bool]:
    """The name of a requirement, its installed version, and whether that is allowed (or not asked for here)."""
    name = re.split(r"[\[<>=;\s]", requirement, maxsplit=1)[0]
    found = None
    with suppress(metadata.PackageNotFoundError):
        found = metadata.version(name)
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with MLflow
        return name, found, found is not None
    parsed = Requirement(requirement)
    if parsed.marker and not parsed.marker.evaluate({"extra": "cpu"}):
        return name, found or "not needed here", found is not None
    return name, found, found is not None and parsed.specifier.contains(found, prereleases=True)


def _extras() -> Check:
    there = [extra for module, extra in EXTRAS.items() if importlib.util.find_spec(module)]
    lacking = [extra for extra in EXTRAS.values() if extra not in there]
    found = f"installed: {', '.join(there) or 'none'}"
    if not lacking:
        return Check("extras", OK, found)
    return Check(
        "extras", NOTE, f"{found}; not needed to train: {', '.join(lacking)}", f"pip install -e '.[{lacking[0]}]'"
    )


def _lock(*, fix: bool) -> list[Check]:
    """The lock of the environment's making, if there is one."""
    lock = ROOT / ".venv.lock"
    try:
        age = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return []
    if age < LOCK_SECONDS:
        return [
            Check(
                "environment",
                NOTE,
                f"another ./run makes it, since {age:.0f} s; or was killed at it",
                f"rmdir {lock}",
            )
        ]
    if fix:
        lock.rmdir()
        return [Check("environment", MENDED, f"took away {lock}, which a ./run that was killed had left")]
    found = f"{lock} is {age / 3600:.0f} hours old: a ./run that was killed left it, and others wait for it"
    return [Check("environment", WRONG, found, command("doctor", pairs="-P fix=true"))]


def _probe(name: str, *, fix: bool) -> Sequence[Check]:
    """What `entry_points.workers.probe` finds, or what became of it."""
    module, needed = PROBES[name]
    if importlib.util.find_spec(module) is None:
        if not needed:
            return ()
        return [Check(name, NOTE, f"not looked at, for {module} isn't installed")]  # `packages` says that is wrong
    worker = [sys.executable, "-m", "entry_points.workers.probe", name, *(["fix"] if fix else [])]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    state = WRONG if needed else NOTE
    try:
        done = subprocess.run(
            worker,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Check(name, state, f"no answer within {PATIENCE_SECONDS} s")]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        remedy = f"pip install --force-reinstall {module}" if name in ("tensorflow", "jax", "store") else ""
        return [Check(name, state, f"can't be used, exit code {done.returncode}: {last}", remedy)]
    return [Check(**each) for each in json.loads(done.stdout.splitlines()[-1])]
