"""The state of a training run after each epoch, on disk: from it an interrupted run goes on.

One folder a run, in the cache; one file an epoch, written under another name and then moved into place, the
last two of them kept, so that a process killed while it writes loses nothing.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import machine
from fmnist.download import cache_dir, unwritable_cache
from fmnist.errors import FmnistError

FORMAT = 1  # raise it when what is kept changes
NUM_KEPT = 2
Arrays = list[NDArray[Any]]


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


def digest(identity: Mapping[str, Any]) -> str:
    """Names what is trained: two runs with the same digest go through the same epochs."""
    text = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(run_id: str, digest: str, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint of a run that this process owns, and drops all but the last two."""
    folder = _folder(run_id)
    about = {
        "digest": digest,
        "kept_epoch": checkpoint.kept_epoch,
        "history": checkpoint.history,
        "num_best": len(checkpoint.best),
    }
    arrays = {f"{index:04}": array for index, array in enumerate([*checkpoint.best, *checkpoint.state])}
    path = folder / f"epoch-{len(checkpoint.history):06}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "owner.json").write_text(json.dumps(machine.process()))
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]  # the stub: allow_pickle
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".part").replace(path)
        for old in sorted(folder.glob("epoch-*.npz"))[:-NUM_KEPT]:
            old.unlink()
    except OSError as error:
        raise unwritable_cache(error) from None


def discard(run_id: str) -> None:
    """Drops the checkpoints of a run that has come to its end."""
    shutil.rmtree(_folder(run_id), ignore_errors=True)


def find(resume: str, digest: str) -> tuple[str, Checkpoint] | None:
    """The run and the checkpoint to go on from.

    Args:
        resume: A run's id; or `auto`, the latest run of this digest that nobody is at, if there is one.
        digest: Of what is to be trained now.

    Raises:
        FmnistError: If the run that is named has no checkpoint, is still at work, or trains something else.
    """
    if resume != "auto":
        folder = _folder(resume)
        if not folder.is_dir():
            raise FmnistError(
                f"resume: run {resume!r} has no checkpoint in {folder.parent}: it isn't known here, or came to "
                "its end; type -P resume=auto to go on where this command was broken off, if it was"
            )
        if _is_owned(folder):
            raise FmnistError(f"resume: run {resume} is still at work; wait for it or end it")
        found = _newest(folder)
        if not found or found[0] != digest:
            raise FmnistError(
                f"resume: the checkpoints of run {resume} are of another training; type the parameters that "
                "it was started with (epochs may differ)"
            )
        return resume, found[1]
    for folder in sorted(_folder("").glob("*/"), key=lambda path: path.stat().st_mtime, reverse=True):
        found = None if _is_owned(folder) else _newest(folder)
        if found and found[0] == digest:
            return folder.name, found[1]
    return None


def _folder(run_id: str) -> Path:
    return cache_dir() / "checkpoints" / run_id


def _is_owned(folder: Path) -> bool:
    """Whether the process that wrote the checkpoints is alive, and not this one."""
    try:
        pid, created = json.loads((folder / "owner.json").read_text())
        return bool(pid != os.getpid() and machine.is_alive(pid, created))
    except (OSError, ValueError):
        return False


def _newest(folder: Path) -> tuple[str, Checkpoint] | None:
    """The last checkpoint that can be read, and the digest of what it is of."""
    for path in sorted(folder.glob("epoch-*.npz"), reverse=True):
        try:
            with path.open("rb") as bytes_, np.load(bytes_) as file:
                about = json.loads(str(file["about"]))
                arrays = [file[name] for name in sorted(file.files) if name != "about"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue
        best, state = arrays[: about["num_best"]], arrays[about["num_best"] :]
        return about["digest"], Checkpoint(state, best, about["kept_epoch"], about["history"])
    return None
