"""The state of a training run after each epoch, on disk: from it an interrupted run goes on.

One folder a run, in the cache, with a lock that the process holds that is at it: a run is taken for ended only
if the file system says so, whatever host or container it is on. One file an epoch, the last two of them kept;
beside them, when all is logged, the run's result. What has come to its end in every respect is dropped.
"""

import json
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock
from numpy.typing import NDArray

from fmnist import cache
from fmnist.errors import FmnistError

FORMAT = 2  # raise it when what is kept changes
NUM_KEPT = 2
Arrays = list[NDArray[Any]]
Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """All that the next epoch depends on."""

    state: Arrays
    """Values of the model's weights, then of the optimizer's variables."""
    best: Arrays
    """Weights of the best epoch so far, where patience asks for them; else empty."""
    kept_epoch: int
    history: list[dict[str, Any]]
    """The figures of each epoch so far."""


@dataclass(frozen=True)
class Found:
    """A run that was broken off, and how far it came."""

    run_id: str
    checkpoint: Checkpoint | None
    result: dict[str, Any] | None
    """What it came to, if all of it is trained and logged."""
    lock: BaseFileLock
    """Held, so that no other process goes on with it too."""


class Keeper(AbstractContextManager["Keeper"]):
    """Keeps the state of one run, which is this process's while the keeper is open."""

    def __init__(self, run_id: str, identity: Identity) -> None:
        self._folder = _root() / run_id
        self._identity = _plain(identity)
        lock = cache.hold(self._folder / "lock")
        if not lock:
            raise FmnistError(f"run {run_id} is at work in another process; wait for it or end it")
        self._lock = lock

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, and drops all but the last two."""
        about = {
            "identity": self._identity,
            "kept_epoch": checkpoint.kept_epoch,
            "history": checkpoint.history,
            "num_best": len(checkpoint.best),
        }
        arrays = {f"{index:04}": array for index, array in enumerate([*checkpoint.best, *checkpoint.state])}
        cache.write(
            self._folder / f"epoch-{len(checkpoint.history):06}.npz",
            lambda file: np.savez(file, about=np.array(json.dumps(about)), **arrays),  # type: ignore[arg-type]  # the stub: allow_pickle
        )
        for old in sorted(self._folder.glob("epoch-*.npz"))[:-NUM_KEPT]:
            old.unlink()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Notes that all is trained and logged, and what came of it; the states are dropped."""
        cache.write(self._folder / "result.json", json.dumps({"identity": self._identity, "result": result}))
        for state in self._folder.glob("epoch-*.npz"):
            state.unlink()


def discard(found: Found) -> None:
    """Drops what is kept of a run that another goes on from."""
    shutil.rmtree(_root() / found.run_id, ignore_errors=True)


def discard_all(identity: Identity) -> None:
    """Drops what is kept of a training that has come to its end, in this run and in those that were broken off.

    To be called by the process that has it open; what other processes are at stays.
    """
    for folder in _root().glob("*/"):
        read = _read(folder)
        if read and read[0] == _plain(identity) and not cache.is_held(folder / "lock"):
            shutil.rmtree(folder, ignore_errors=True)


def find(resume: str, identity: Identity) -> Found | None:
    """The run to go on from.

    Args:
        resume: A run's id; or `auto`, the latest run of this identity that nobody is at, if there is one.
        identity: Of what is to be trained now: all that decides its epochs.

    Raises:
        FmnistError: If the run that is named has no checkpoint, is still at work, or trains something else.
    """
    if resume == "auto":
        for folder in sorted(_root().glob("*/"), key=lambda path: path.stat().st_mtime, reverse=True):
            read = _read(folder)
            if read and read[0] == _plain(identity) and (lock := cache.hold(folder / "lock")):
                return Found(folder.name, *read[1:], lock)
        return None
    folder = _root() / resume
    read = _read(folder)
    if not read:
        raise FmnistError(
            f"resume: run {resume!r} has no checkpoint in {folder.parent}: it isn't known here, or came to "
            "its end; type -P resume=auto to go on where this command was broken off, if it was"
        )
    wanted = _plain(identity)
    differing = [
        f"{name} {read[0].get(name)}, now {wanted[name]}" for name in wanted if read[0].get(name) != wanted[name]
    ]
    if differing:
        raise FmnistError(
            f"resume: the checkpoints of run {resume} are of another training: {'; '.join(differing)}; type the "
            "parameters that it was started with (epochs may differ)"
        )
    lock = cache.hold(folder / "lock")
    if not lock:
        raise FmnistError(f"resume: run {resume} is still at work; wait for it or end it")
    return Found(resume, *read[1:], lock)


def _root() -> Path:
    return cache.folder() / "checkpoints"


def _plain(identity: Identity) -> dict[str, Any]:
    """As it comes back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **identity}))
    return plain


def _read(folder: Path) -> tuple[dict[str, Any], Checkpoint | None, dict[str, Any] | None] | None:
    """What is kept of a run: its identity, and its result or the last checkpoint that can be read."""
    try:
        done = json.loads((folder / "result.json").read_text())
        return done["identity"], None, done["result"]
    except (OSError, ValueError, KeyError):
        pass  # it isn't done
    for path in sorted(folder.glob("epoch-*.npz"), reverse=True):
        try:
            with path.open("rb") as bytes_, np.load(bytes_) as file:
                about = json.loads(str(file["about"]))
                arrays = [file[name] for name in sorted(file.files) if name != "about"]
                best, state = arrays[: about["num_best"]], arrays[about["num_best"] :]
                return about["identity"], Checkpoint(state, best, about["kept_epoch"], about["history"]), None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue
    return None
