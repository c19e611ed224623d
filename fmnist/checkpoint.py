"""The state of a training run after each epoch, on disk: from it an interrupted run goes on.

One folder a run, in the cache, with a lock that the process holds that is at it: a run is taken for ended only
if the file system says so, whatever host or container it is on. One file an epoch, the last two of them kept;
beside them, when all is logged, the run's result. What has come to its end in every respect is dropped.
"""

import json
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock
from numpy.typing import NDArray

from fmnist import cache
from fmnist.errors import FmnistError

FORMAT = 3  # raise it when what is kept changes
NUM_KEPT = 2
RESULT = "result.json"
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

    def __init__(self, run_id: str, identity: Identity, epochs: int) -> None:
        self._folder = _root() / run_id
        self._about = {"identity": _plain(identity), "epochs": epochs}
        lock = cache.hold(self._folder / "lock")
        if not lock:
            raise FmnistError(f"run {run_id} is at work in another process; wait for it or end it")
        self._lock = lock

    def __exit__(self, *_: object) -> None:
        if not _files(self._folder):  # it was broken off before there was anything to keep
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.release()

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, and drops all but the last two."""
        about = {
            **self._about,
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
        cache.write(self._folder / RESULT, json.dumps({**self._about, "result": result}))
        for state in self._folder.glob("epoch-*.npz"):
            state.unlink()


def discard(found: Found) -> None:
    """Drops what is kept of a run that another goes on from."""
    shutil.rmtree(_root() / found.run_id, ignore_errors=True)


def discard_all(identity: Identity, epochs: int, *, but: Collection[str] = ()) -> None:
    """Drops what is kept of a training of so many epochs that has come to its end, however often it was begun.

    What other processes are at stays, and so do `but` these runs, and those that were to go through other epochs.
    """
    wanted = {"identity": _plain(identity), "epochs": epochs}
    for folder in _root().glob("*/"):
        about = None if folder.name in but else _about(folder)
        if about and wanted.items() <= about.items() and not cache.is_held(folder / "lock"):
            shutil.rmtree(folder, ignore_errors=True)


def rename(ids: Mapping[str, str]) -> None:
    """Has what is kept of runs, and what they came to, under other ids of runs and models."""
    for folder in list(_root().glob("*/")) if ids else []:
        result = folder / RESULT
        if result.exists():
            text = known = result.read_text()
            for old, new in ids.items():
                text = text.replace(old, new)
            if text != known:
                cache.write(result, text)
        if folder.name in ids:
            folder.replace(folder.with_name(ids[folder.name]))


def unreadable() -> list[Path]:
    """What is kept of runs that can't be gone on from, and that no process is at."""
    return [each for each in _root().glob("*/") if not _about(each) and not cache.is_held(each / "lock")]


def find(resume: str, identity: Identity, epochs: int) -> Found | None:
    """The run to go on from.

    Args:
        resume: A run's id; or `auto`, the latest run of this identity that nobody is at, if there is one.
        identity: Of what is to be trained now: all that decides its epochs.
        epochs: How many of them there are to be. A run that is complete is taken if it was to go through as
            many, one that was broken off if it has gone through no more.

    Raises:
        FmnistError: If the run that is named has no checkpoint, is still at work, or trains something else.
    """
    wanted = _plain(identity)
    if resume == "auto":
        for folder in sorted(_root().glob("*/"), key=_age):
            about = _about(folder)
            if about and about["identity"] == wanted and _serves(about, epochs):
                lock = cache.hold(folder / "lock")
                if lock:
                    return _found(folder, lock)
        return None
    folder = _root() / resume
    about = _about(folder)
    if not about:
        raise FmnistError(
            f"resume: run {resume!r} has no checkpoint in {folder.parent}: it isn't known here, or came to "
            "its end; type -P resume=auto to go on where this command was broken off, if it was"
        )
    kept = about["identity"]
    differing = [
        f"{name} {kept.get(name)}, now {wanted[name]}" for name in wanted if kept.get(name) != wanted[name]
    ]
    if differing:
        raise FmnistError(
            f"resume: the checkpoints of run {resume} are of another training: {'; '.join(differing)}; type the "
            "parameters that it was started with (epochs may differ)"
        )
    if not _serves(about, epochs):
        done = f"is complete with {about['epochs']}" if "result" in about else f"has done {len(about['history'])}"
        raise FmnistError(
            f"resume: run {resume} {done} epochs, now {epochs}; type that many, or more if it isn't complete"
        )
    lock = cache.hold(folder / "lock")
    if not lock:
        raise FmnistError(f"resume: run {resume} is still at work; wait for it or end it")
    return _found(folder, lock)


def _root() -> Path:
    return cache.folder() / "checkpoints"


def _plain(identity: Identity) -> dict[str, Any]:
    """As it comes back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **identity}))
    return plain


def _files(folder: Path) -> list[Path]:
    """What is kept of a run, the newest first: its result alone, or its last states."""
    result = folder / RESULT
    return [result] if result.exists() else sorted(folder.glob("epoch-*.npz"), reverse=True)


def _age(folder: Path) -> float:
    try:
        return -folder.stat().st_mtime
    except OSError:  # another process has dropped it meanwhile
        return 0.0


def _about(folder: Path) -> dict[str, Any] | None:
    """What is kept of a run, without its arrays: `identity`, `epochs`, and `result` or `history`."""
    return next((about for about, _ in _readable(folder, arrays=False)), None)


def _found(folder: Path, lock: BaseFileLock) -> Found | None:
    for about, arrays in _readable(folder, arrays=True):
        if "result" in about:
            return Found(folder.name, None, about["result"], lock)
        best, state = arrays[: about["num_best"]], arrays[about["num_best"] :]
        return Found(folder.name, Checkpoint(state, best, about["kept_epoch"], about["history"]), None, lock)
    lock.release()
    return None  # another process has dropped it meanwhile


def _readable(folder: Path, *, arrays: bool) -> Iterator[tuple[dict[str, Any], Arrays]]:
    """The files of a run that can be read, the newest first, each with its arrays if they are wanted."""
    for path in _files(folder):
        try:
            if path.name == RESULT:
                yield json.loads(path.read_text()), []
                continue
            with path.open("rb") as bytes_, np.load(bytes_) as file:
                names = [name for name in sorted(file.files) if name != "about"]
                yield json.loads(str(file["about"])), [file[name] for name in names] if arrays else []
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue


def _serves(about: Mapping[str, Any], epochs: int) -> bool:
    return about["epochs"] == epochs if "result" in about else len(about["history"]) <= epochs
