"""Which process is alive, where it computes, and how one times in quiet."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from fmnist import processes


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_process_is_known_until_it_ends_also_as_a_zombie():
    code = (
        "import json, sys\nfrom fmnist import processes\nprint(json.dumps(processes.this_process()), flush=True)\n"
    )
    with python(code + "sys.stdin.read()") as other:
        named = json.loads(other.stdout.readline())
        assert processes.is_alive(named) is True
        assert processes.is_alive(named | {"started": named["started"] - 1}) is False, "its number was used again"
        other.kill()
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert processes.is_alive(named) is False
    assert processes.is_alive(named) is False


def test_a_clock_that_is_set_makes_no_process_dead(monkeypatch):
    named = processes.this_process()
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(psutil, "boot_time", lambda: later)
    assert processes.is_alive(named) is True


@pytest.mark.parametrize("elsewhere", ["host", "boot", "space"])
def test_a_process_that_can_not_be_seen_from_here_is_neither_alive_nor_dead(elsewhere):
    """Two hosts or containers may have one name, and then differ in their boot or their numbers alone."""
    assert processes.is_alive(processes.this_process() | {elsewhere: "another", "pid": 2**22 + 1}) is None


def test_pinned_processes_have_threads_of_their_own(tmp_path):
    code = (
        "import os, sys\n"
        "from fmnist import processes\n"
        "with processes.pinned(1):\n"
        "    print(sorted(os.sched_getaffinity(0)), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    threads = sorted(os.sched_getaffinity(0))
    pinned = [python(code, env=os.environ | {"TMPDIR": str(tmp_path)}) for _ in threads]
    found = [json.loads(process.stdout.readline()) for process in pinned]
    for process in pinned:
        process.communicate()
    assert sorted(found) == [[each] for each in threads]


def test_who_times_is_alone_and_who_computes_goes_on_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import sys\nfrom pathlib import Path\nfrom fmnist import processes\n"
        "step, path = 0, Path(sys.argv[1])\n"
        "with processes.Quiet(wanted=True) as quiet:\n"
        "    print('open', flush=True)\n"
        "    while True:\n"
        "        step += 1\n"
        "        path.write_text(str(step))\n"
        "        quiet.pause()\n"
    )
    paths = [tmp_path / str(number) for number in range(2)]
    others = [python(code, str(path), env=os.environ | {"TMPDIR": str(tmp_path)}) for path in paths]
    try:
        for other in others:
            assert other.stdout.readline() == "open\n"

        def steps():
            return [Path(path).read_text() for path in paths]

        with processes.Quiet(wanted=True) as quiet:
            for _ in range(3):
                with quiet.alone():
                    before = steps()
                    time.sleep(0.1)
                    assert steps() == before
                give_up = time.monotonic() + 30
                while any(one == other for one, other in zip(steps(), before, strict=True)):
                    assert time.monotonic() < give_up, "those that waited don't go on"
                    time.sleep(0.01)
                    quiet.pause()
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_quiet_that_is_not_wanted_makes_nobody_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with processes.Quiet(wanted=True), processes.Quiet(wanted=False) as unwanted, unwanted.alone():
        pass
