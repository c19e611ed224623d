"""Processes: which one this is, whether another is alive; starting one, keeping one to some of the CPU."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil
from filelock import ReadWriteLock

ROOT = Path(__file__).parent.parent


def this_process() -> dict[str, Any]:
    """Names this process among those of all hosts, containers and boots; no clock takes part."""
    return {**_here(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Whether a process that `this_process` named still runs; None if it can't be seen from here.

    One of an earlier boot can't be: two hosts may have one name.
    """
    if any(process.get(name) != value for name, value in _here().items()):
        return None
    return bool(_started(process["pid"]) == process["started"])


def start(module: str, request: str, **options: Any) -> "subprocess.Popen[str]":
    """Starts `python -m MODULE REQUEST` on this project's code; options are those of `subprocess.Popen`."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", module, request],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdin=subprocess.DEVNULL,
        text=True,
        **options,
    )


def ending(code: int, messages: str) -> str:
    """What a child that failed ended with, in a line: its exit code and its last words on stderr."""
    last = (messages.strip().splitlines() or ["no message"])[-1]
    return f"exit code {code}{' (often: out of memory)' if code == -9 else ''}: {last}"


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keeps this process to so many threads of the CPU that no other process has been kept to.

    Where so many are not free, or the system can't, the process goes where it likes.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    from fmnist import cache

    own = sorted(os.sched_getaffinity(0))
    for start in range(0, len(own) - threads + 1, threads):
        wanted = own[start : start + threads]
        with ExitStack() as claims:
            for thread in wanted:
                claim = cache.hold(Path(tempfile.gettempdir()) / f"fmnist-{os.getuid()}-thread-{thread}")
                if claim is None:
                    break
                claims.callback(claim.release)
            else:
                os.sched_setaffinity(0, wanted)
                claims.callback(os.sched_setaffinity, 0, own)
                yield
                return
    yield


class Quiet:
    """Lets processes of this user compute side by side on this machine, and one of them time something in quiet.

    For as long as it is open, the process computes; unless it isn't `wanted`, which makes it do nothing.
    """

    def __init__(self, *, wanted: bool) -> None:
        # where there are no numbers of users, the folder is the user's own
        user = os.getuid() if hasattr(os, "getuid") else ""
        path = Path(tempfile.gettempdir()) / f"fmnist-{user}-quiet.db"
        self._computing = ReadWriteLock(path) if wanted else None

    def __enter__(self) -> Self:
        if self._computing:
            self._computing.acquire_read()
        return self

    def __exit__(self, *_: object) -> None:
        if self._computing:
            self._computing.release()

    def pause(self) -> None:
        """Lets a process go first that waits to time."""
        self.__exit__()
        self.__enter__()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the others pause: each of them comes to its next pause first."""
        self.__exit__()
        try:
            with self._computing.write_lock() if self._computing else nullcontext():
                yield
        finally:
            self.__enter__()


@cache
def _here() -> dict[str, str]:
    """The host, its boot, and the space in which a process's number means something and can be looked up."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # A system may hide the processes of other users.
        space = f"{Path('/proc/self/ns/pid').readlink()} of user {os.getuid()}"
    except OSError:  # not Linux
        boot, space = str(int(psutil.boot_time())), ""
    return {"host": socket.gethostname(), "boot": boot, "space": space}


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the boot (elsewhere than on Linux in seconds); None if it has ended."""
    try:
        # The second field, the name, may hold blanks and brackets; the state is the third, the start the 22nd.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else int(fields[18])
    except FileNotFoundError:
        if sys.platform == "linux":
            return None
    except ProcessLookupError:
        return None
    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else int(found.create_time())
    except psutil.Error:
        return None
