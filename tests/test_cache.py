"""The cache's files and locks, between processes, containers and forks."""

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import filelock
import pytest
from conftest import ROOT

from fmnist import cache
from fmnist.errors import FmnistError


@contextmanager
def holder(path, more=""):
    """Another process, that holds a lock until it is told to go on."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom fmnist import cache\n"
        "held = cache.hold(Path(sys.argv[1]))\n"
        f"{more}\n"
        "print(held is not None, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_is_held_by_one_and_its_end_is_seen_even_of_a_killed_process(tmp_path):
    path = tmp_path / "folder" / "lock"
    assert not cache.is_held(path)
    with holder(path) as process:
        assert cache.is_held(path)
        assert cache.hold(path) is None
        process.kill()
        process.wait()
        assert not cache.is_held(path)
        assert cache.hold(path)


def test_a_stopped_process_keeps_its_lock(tmp_path):
    with holder(tmp_path / "lock") as process:
        process.send_signal(signal.SIGSTOP)
        assert cache.is_held(tmp_path / "lock")
        process.send_signal(signal.SIGCONT)


def test_one_process_can_not_have_a_lock_twice(tmp_path):
    held = cache.hold(tmp_path / "lock")
    assert cache.is_held(tmp_path / "lock")
    assert cache.hold(tmp_path / "lock") is None
    assert cache.is_held(tmp_path / "lock"), "what was tried in vain has let go of it"
    held.release()
    assert not cache.is_held(tmp_path / "lock")


def test_a_fork_neither_ends_a_lock_nor_keeps_it(tmp_path):
    fork = (
        "reading, writing = os.pipe()\n"
        "if not os.fork():\n"
        "    os.close(writing)\n"
        "    os.read(reading, 1)\n"  # until the parent ends
        "    os._exit(0)\n"
        "print(True, flush=True)\n"
        "sys.stdin.readline()\n"
        "held.release()\n"
    )
    with holder(tmp_path / "lock", fork) as process:
        assert cache.is_held(tmp_path / "lock")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True\n"
        assert not cache.is_held(tmp_path / "lock")
    with holder(tmp_path / "other", "if not os.fork():\n    os._exit(0)\nos.wait()"):
        assert cache.is_held(tmp_path / "other")


def test_who_only_looks_is_in_nobodys_way(tmp_path):
    """A look has the lock for a moment: here one that is a thousand times as long."""
    looking = filelock.FileLock(tmp_path / "lock", thread_local=False)
    looking.acquire()
    threading.Timer(cache.PATIENCE_SECONDS / 4, looking.release).start()
    assert cache.hold(tmp_path / "lock")


def test_the_file_of_a_lock_stays_so_that_all_who_wait_wait_for_the_same(tmp_path):
    with cache.lock(tmp_path / "lock"):
        first = (tmp_path / "lock").stat().st_ino
    with cache.lock(tmp_path / "lock"):
        assert (tmp_path / "lock").stat().st_ino == first


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    import fcntl

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    for take in (cache.hold, lambda path: cache.lock(path).__enter__()):
        with pytest.raises(FmnistError, match=r"a lock can't be made in .*Function not implemented"):
            take(tmp_path / "lock")


def test_two_that_write_a_file_at_once_leave_it_whole_even_if_they_have_one_number(tmp_path, monkeypatch):
    """As processes of two containers may have."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "file"

    def write_in_turns(file):
        file.write(b"one ")
        cache.write(path, "the other")
        assert path.read_text() == "the other"
        file.write(b"whole")

    cache.write(path, write_in_turns)
    assert path.read_text() == "one whole"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    def full(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(FmnistError, match="No space left"):
        cache.write(tmp_path / "file", full)
    assert [*tmp_path.iterdir()] == []
