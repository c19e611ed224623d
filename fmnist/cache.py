"""The cache: its folder, files that appear whole or not at all, locks between processes, hashes."""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import platformdirs
from filelock import FileLock, Timeout

from fmnist.errors import FmnistError


class LockError(FmnistError):
    """A lock's file can't be made, in a folder that isn't the cache."""


PATIENCE_SECONDS = 0.1  # many times what `is_held` takes


def folder() -> Path:
    """Where downloads, prepared splits, checkpoints and studies lie: FMNIST_CACHE_DIR, else the user's cache."""
    return Path(os.environ.get("FMNIST_CACHE_DIR") or platformdirs.user_cache_dir("fmnist", appauthor=False))


def unwritable(error: OSError) -> FmnistError:
    """The error for a cache that can't be written."""
    return FmnistError(f"the cache can't be written ({error}); name another folder with FMNIST_CACHE_DIR")


def write(path: Path, content: str | Callable[[IO[bytes]], object]) -> None:
    """Writes a file under another name and moves it into place: nobody ever reads half of it.

    Args:
        path: The file; its folder is made.
        content: A text, or what writes the bytes to an open file.

    Raises:
        FmnistError: If it can't be written.
    """
    # Processes of two containers may have one number.
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())  # the name must not come before the bytes, even if the power fails
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if path.is_relative_to(folder()):
            raise unwritable(error) from None
        raise FmnistError(f"{path} can't be written ({error})") from None


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, which others wait for; the system releases it when the process ends.

    The file stays: to delete one that others may be waiting for would give them two.

    Raises:
        FmnistError: If the lock's file can't be made, or its file system knows no locks.
    """
    held = _acquired(path, seconds=-1)
    try:
        yield
    finally:
        if held:
            held.release()


def hold(path: Path) -> FileLock | None:
    """Takes a lock for as long as what is given lives, or gives None if another process has it.

    Raises:
        FmnistError: As `lock`.
    """
    return _acquired(path, seconds=PATIENCE_SECONDS)  # a process that only looks has it for a moment


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock, on whatever host or in whatever container that shares the folder.

    Raises:
        FmnistError: As `lock`.
    """
    if not path.exists():
        return False
    held = _acquired(path, seconds=0)
    if held:
        held.release()
    return held is None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(record: Any) -> str:
    """16 hexadecimal characters that name a record of JSON's types."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _acquired(path: Path, *, seconds: float) -> FileLock | None:
    """A lock that was taken within so many seconds (-1: whenever), or None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A soft lock, which filelock makes where the file system knows no other, would outlive its process.
        held = FileLock(path, thread_local=False, fallback_to_soft=False)
        held.acquire(timeout=seconds)
    except Timeout:
        return None
    except OSError as error:
        if path.is_relative_to(folder()):
            raise unwritable(error) from None
        raise LockError(f"a lock can't be made in {path.parent} ({error})") from None
    return held
