"""Checkpoints: what is kept of a run, whose it is, and what it belongs to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist import checkpoint, machine, training
from fmnist.errors import FmnistError
from fmnist.settings import Train


def state(count: int) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint([np.full(3, count)], [], count, [{}] * count)


def save(run_id: str, identity: dict[str, object], *states: checkpoint.Checkpoint) -> None:
    with checkpoint.Keeper(run_id, identity, 5) as keeper:
        for each in states:
            keeper.save(each)


def test_the_last_two_checkpoints_are_kept_and_a_torn_one_is_passed_over(cache):
    save("torn", {"of": "torn"}, state(1), state(2), state(3))
    newest, older = sorted((cache / "checkpoints" / "torn").glob("*.npz"), reverse=True)
    newest.write_bytes(newest.read_bytes()[:100])
    found = checkpoint.find("auto", {"of": "torn"}, 5)
    assert found.checkpoint.state[0].tolist() == [2, 2, 2]
    found.lock.release()
    older.unlink()
    assert checkpoint.find("auto", {"of": "torn"}, 5) is None


def test_a_checkpoint_of_something_else_or_of_nobody_is_refused_with_what_differs():
    save("mine", {"model": "mlp", "seed": 0}, state(1))
    with pytest.raises(FmnistError, match="are of another training: seed 0, now 1; type"):
        checkpoint.find("mine", {"model": "mlp", "seed": 1}, 5)
    with pytest.raises(FmnistError, match="has no checkpoint"):
        checkpoint.find("nobody", {"model": "mlp", "seed": 0}, 5)
    assert checkpoint.find("auto", {"model": "mlp", "seed": 1}, 5) is None
    checkpoint.discard(checkpoint.find("mine", {"model": "mlp", "seed": 0}, 5))
    assert checkpoint.find("auto", {"model": "mlp", "seed": 0}, 5) is None


def test_a_result_stands_for_the_states_and_goes_when_all_is_done(cache):
    identity = {"of": "finished"}
    with checkpoint.Keeper("finished", identity, 5) as keeper:
        keeper.save(state(1))
        keeper.finish({"accuracy": 0.5})
    found = checkpoint.find("auto", identity, 5)
    assert (found.run_id, found.checkpoint, found.result) == ("finished", None, {"accuracy": 0.5})
    checkpoint.discard_all(identity, 5)  # another process is at it: this one holds its lock
    assert (cache / "checkpoints" / "finished").exists()
    found.lock.release()
    checkpoint.discard_all(identity, 5)
    assert not (cache / "checkpoints" / "finished").exists()


def test_a_checkpoint_is_of_a_living_process_until_that_is_killed():
    code = (
        "import sys; from fmnist import checkpoint; import numpy as np\n"
        "keeper = checkpoint.Keeper('living', {'of': 'living'}, 5)\n"
        "keeper.save(checkpoint.Checkpoint([np.zeros(1)], [], 1, [{}]))\n"
        "print('saved', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        process.stdout.readline()
        with pytest.raises(FmnistError, match="is still at work"):
            checkpoint.find("living", {"of": "living"}, 5)
        assert checkpoint.find("auto", {"of": "living"}, 5) is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    found = checkpoint.find("auto", {"of": "living"}, 5)
    assert found.run_id == "living"
    found.lock.release()


@pytest.mark.parametrize("change", ["code", "device", "versions", "data"])
def test_edited_code_another_device_other_versions_or_data_begin_anew(change, monkeypatch, tmp_path):
    class Data:
        manifest = {"digest": "d"}  # noqa: RUF012  # a stand-in

    plan = training.plan(Train())
    before = training.identity(plan, Data, "auto")
    save(f"before {change}", before, state(1))
    if change == "code":
        source = Path(machine.__file__).parent
        copy = tmp_path / "fmnist"
        subprocess.run(["cp", "-r", source, copy], check=True)
        monkeypatch.setattr(machine, "__file__", str(copy / "machine.py"))
        assert training.identity(plan, Data, "auto") == before
        models = copy / "models.py"
        models.write_text(
            models.read_text().replace('activation: Activation = "tanh"', 'activation: Activation = "elu"')
        )
    elif change == "versions":
        monkeypatch.setattr(machine, "versions", lambda: {"keras": "99"})
    elif change == "data":
        monkeypatch.setattr(Data, "manifest", {"digest": "e"})
    after = training.identity(plan, Data, "cpu" if change == "device" else "auto")
    assert checkpoint.find("auto", after, 5) is None
    with pytest.raises(FmnistError, match=f"are of another training: {'dataset' if change == 'data' else change}"):
        checkpoint.find(f"before {change}", after, 5)


def test_a_folder_of_another_host_is_known_by_its_lock_alone(cache):
    """No process number, host name or clock takes part: containers that share the cache have their own."""
    save("elsewhere", {"of": "elsewhere"}, state(1))
    assert [path.name for path in (cache / "checkpoints" / "elsewhere").iterdir() if path.suffix != ".npz"] == [
        "lock"
    ]


def test_a_complete_run_stands_for_as_many_epochs_and_a_broken_one_for_no_fewer():
    identity = {"of": "epochs"}
    with checkpoint.Keeper("complete", identity, 5) as keeper:
        keeper.finish({"accuracy": 0.5})
    assert checkpoint.find("auto", identity, 20) is None
    with pytest.raises(FmnistError, match="is complete with 5 epochs, now 20"):
        checkpoint.find("complete", identity, 20)
    save("broken", identity, state(4))
    found = checkpoint.find("auto", identity, 20)
    assert found.run_id == "broken"
    found.lock.release()
    assert checkpoint.find("auto", identity, 3) is None
    with pytest.raises(FmnistError, match="has done 4 epochs, now 3"):
        checkpoint.find("broken", identity, 3)


def test_a_short_training_that_ends_leaves_a_longer_one_that_was_broken_off(cache):
    identity = {"of": "long and short"}
    save("long", identity, state(1))
    checkpoint.discard_all(identity, 1)
    assert (cache / "checkpoints" / "long").exists()
    checkpoint.discard_all(identity, 5)
    assert not (cache / "checkpoints" / "long").exists()


def test_a_run_that_kept_nothing_leaves_nothing(cache):
    with checkpoint.Keeper("empty", {"of": "nothing"}, 1):
        pass
    assert not (cache / "checkpoints" / "empty").exists()
