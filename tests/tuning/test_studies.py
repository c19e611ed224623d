"""Who works on a study, who leads it, and what becomes of the trials of those that are gone."""

import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
import pytest
from conftest import ROOT
from optuna.trial import TrialState
from searches import AUTO, made_study

from fmnist.errors import FmnistError
from fmnist.tuning import studies

ENTER = "with studies.at_work(name, storage) as process:\n"
LEAD = "with studies.Lead(name, storage) as lead:\n    print(lead.leads, flush=True)\n    sys.stdin.read()\n"
TRIAL = (
    "    with studies.lock(name, storage):\n"
    "        trial = studies.find(name, storage).ask()\n"
    "        trial.suggest_int('width', 1, 1000)\n"
    "        trial.set_user_attr('worker', process | {'host': sys.argv[3] or process['host']})\n"
    "    print(trial.number, flush=True)\n"
    "    sys.stdin.read()\n"
)


@contextmanager
def another(code, name, storage, host=""):
    """Another process, at a study, when it has said its first line."""
    code = f"import sys\nfrom fmnist.tuning import studies\nname, storage = sys.argv[1:3]\n{code}"
    with subprocess.Popen(
        [sys.executable, "-c", code, name, storage, host],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        process.said = process.stdout.readline().strip()
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(params=["file", "postgresql"])
def storage(request):
    return AUTO if request.param == "file" else request.getfixturevalue("postgres").storage


def test_a_trial_is_its_processs_until_that_is_killed_whatever_the_clock_says(storage, monkeypatch):
    study = made_study(f"alive-{storage[:4]}", storage=storage)
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    with another(ENTER + TRIAL, study.study_name, storage) as process:
        assert studies.sweep(study, storage) == []
        process.send_signal(signal.SIGSTOP)
        assert studies.sweep(study, storage) == []
        process.kill()
        process.wait()
        (lost,) = studies.sweep(study, storage)
    assert studies.error(study, lost) == studies.LOST
    assert [trial.state for trial in studies.trials(study)] == [TrialState.FAIL, TrialState.WAITING]
    assert studies.trials(study)[1].params == lost.params


def test_in_a_file_a_trial_of_another_container_is_known_by_the_lock_that_its_worker_holds():
    """Its host has another name, and its number means nothing here."""
    study = made_study("containers")
    with another(ENTER + TRIAL, "containers", AUTO, "elsewhere") as process:
        assert studies.sweep(study, AUTO) == []
        process.kill()
        process.wait()
        assert len(studies.sweep(study, AUTO)) == 1


def test_a_worker_that_ends_leaves_no_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path))
    with studies.at_work("any", AUTO) as process:
        assert [path.stem for path in (tmp_path / "studies" / "workers").iterdir()] == [process["lock"]]
    assert [*(tmp_path / "studies" / "workers").iterdir()] == []


def test_a_trial_that_is_just_being_begun_is_not_taken_for_lost():
    """Who draws a trial holds the study's lock until it has said who it is; a sweep waits for it."""
    study = made_study("beginning")
    begins = (
        "with studies.lock(name, storage):\n"
        "    trial = studies.find(name, storage).ask()\n"
        "    print(trial.number, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    trial.set_user_attr('worker', process)\n"
        "sys.stdin.read()\n"
    )
    code = ENTER + "".join(f"    {line}\n" for line in begins.splitlines())
    sweeper = "study = studies.find(name, storage)\nprint('ready', flush=True)\nstudies.sweep(study, storage)\n"
    with another(code, "beginning", AUTO) as process, another(sweeper, "beginning", AUTO) as sweeping:
        with pytest.raises(subprocess.TimeoutExpired):
            sweeping.wait(timeout=0.5)
        process.stdin.write("\n")
        process.stdin.flush()
        assert sweeping.wait(timeout=30) == 0
        assert [trial.state for trial in studies.trials(study)] == [TrialState.RUNNING]


def test_one_that_was_killed_as_it_began_a_trial_is_swept(storage):
    study = made_study(f"begun-{storage[:4]}", storage=storage)
    study.add_trial(optuna.create_trial(state=TrialState.RUNNING))
    assert len(studies.sweep(study, storage)) == 1


@pytest.mark.parametrize(
    ("interrupted", "tries"), [(["me"] * 4, 5), ([None] * 2, 2), (["me", None, "me", None], 4)], ids=str
)
def test_an_interrupted_trial_is_tried_again_and_again_and_a_lost_one_once(interrupted, tries):
    study = made_study(f"tries-{tries}")
    distributions = {"width": optuna.distributions.IntDistribution(64, 1024)}
    trial = study.ask(distributions)
    for command in interrupted:
        trial.set_user_attr("worker", {"lock": "of nobody", "command": "me"})
        (swept,) = studies.sweep(study, AUTO, interrupted=command)
        assert studies.error(study, swept) == (studies.INTERRUPTED if command else studies.LOST)
        assert studies.sweep(study, AUTO, interrupted=command) == []
        if studies.trials(study, TrialState.WAITING):
            trial = study.ask(distributions)
    assert len(studies.trials(study)) == tries
    assert len({each.params["width"] for each in studies.trials(study)}) == 1
    assert len(studies.counted(study)) == 1
    assert studies.repeated_error(study, 0) is None


def test_trials_that_are_lost_together_and_tried_again_do_not_stop_a_search():
    study = made_study("lost-together", *[TrialState.RUNNING] * 3)
    assert len(studies.sweep(study, AUTO)) == 3
    assert studies.repeated_error(study, 0) is None
    assert studies.remaining(study, 3) == 3


def test_what_optuna_calls_a_retry_is_what_this_project_reads():
    """Its callback writes `retry_history` to a trial's system attributes: by them, a lost trial isn't counted."""
    study = made_study("retried", TrialState.RUNNING)
    studies.sweep(study, AUTO)
    (waiting,) = studies.trials(study, TrialState.WAITING)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        assert optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history(waiting) == [0]
    assert studies.counted(study) == []


def test_a_trial_of_another_machine_whose_heart_stops_is_tried_once_more(postgres, monkeypatch):
    """The other machine: a process that says that it is there, and is killed."""
    monkeypatch.setattr(studies, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(studies, "GRACE_SECONDS", 1)
    study = studies.find_or_create("hearts", postgres.storage, ("accuracy",), {})
    code = (
        "import os\n"
        "studies.HEARTBEAT_SECONDS, studies.GRACE_SECONDS = 1, 1\n"
        "def killed(trial):\n"
        "    trial.suggest_int('width', 1, 1000)\n"
        "    trial.set_user_attr('worker', {'host': 'elsewhere', 'pid': 1})\n"
        "    os.kill(os.getpid(), 9)\n"
        "studies.find(name, storage).optimize(killed, n_trials=1)\n"
    )
    with another(code, "hearts", postgres.storage) as process:
        process.wait()
    assert studies.sweep(study, postgres.storage) == [], "it is not this machine's to judge"
    give_up = time.monotonic() + 30
    while studies.trials(study, TrialState.RUNNING):
        assert time.monotonic() < give_up
        time.sleep(0.2)
        studies.sweep_other_machines(study)
    lost, again = studies.trials(study)
    assert (lost.state, again.state, again.params) == (TrialState.FAIL, TrialState.WAITING, lost.params)
    assert studies.remaining(study, 1) == 1


def test_many_processes_may_be_the_first_in_a_new_database(postgres):
    import psycopg

    with psycopg.connect(postgres.storage, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
    storage = postgres.storage.removesuffix("postgres") + "fresh"
    code = "sys.stdin.read()\nstudies.find(name, storage)\n"
    ready = "print('ready', flush=True)\n"
    with ExitStack() as stack:
        processes = [stack.enter_context(another(ready + code, "same", storage)) for _ in range(4)]
        for process in processes:
            process.stdin.close()
        assert [process.wait(timeout=60) for process in processes] == [0] * 4


# Who leads:


def test_one_process_leads_and_the_next_when_it_is_killed(storage):
    name = f"led-{storage[:4]}"
    with another(LEAD, name, storage) as process:
        assert process.said == "True"
        process.send_signal(signal.SIGSTOP)  # it says nothing, and leads
        with studies.Lead(name, storage) as other:
            assert not other.leads
        process.kill()
        process.wait()
        give_up = time.monotonic() + 30
        leads = False
        while not leads:
            assert time.monotonic() < give_up
            with studies.Lead(name, storage) as other:
                leads = other.leads
                other.keep()


def test_a_database_that_is_started_anew_makes_no_two_leaders(postgres):
    with (
        studies.Lead("restarted", postgres.storage) as first,
        studies.Lead("restarted", postgres.storage) as second,
    ):
        assert (first.leads, second.leads) == (True, False)
        postgres.stop()
        postgres.start()
        first.keep()
        second.keep()
        with studies.Lead("restarted", postgres.storage) as third:
            assert not third.leads
        postgres.stop()
        postgres.start()
        with studies.Lead("restarted", postgres.storage) as third:
            assert third.leads
            with pytest.raises(
                FmnistError, match="its database was away, and now another command leads restarted"
            ):
                first.keep()


def test_a_leader_does_not_wait_for_ever_for_its_database(postgres, monkeypatch):
    monkeypatch.setattr(studies, "AWAY_SECONDS", 0.1)
    with studies.Lead("away", postgres.storage) as lead:
        postgres.stop()
        try:
            with pytest.raises(FmnistError, match="storage: no PostgreSQL answers at postgresql://fmnist@127"):
                lead.keep()
        finally:
            postgres.start()


def test_a_heart_goes_on_after_the_database_was_away(postgres, monkeypatch):
    monkeypatch.setattr(studies, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(studies, "GRACE_SECONDS", 2)
    study = studies.find_or_create("beats", postgres.storage, ("accuracy",), {})

    def objective(trial):
        postgres.stop()
        time.sleep(1.1)  # a beat falls into it
        postgres.start()
        time.sleep(2.1)  # with no beat since, it would be taken for dead
        studies.sweep_other_machines(study)
        return 0.5

    study.optimize(objective, n_trials=1)
    assert [trial.state for trial in studies.trials(study)] == [TrialState.COMPLETE]


def test_optunas_dashboard_is_given_an_address_that_opens_the_study_with_its_objectives_names(storage):
    """As the dashboard opens it: a file is a journal, all else is SQLAlchemy's."""
    name = f"watched-{storage[:4]}"
    objectives = ("accuracy", "latency", "parameters")
    attributes = {"identity": {"objective": ",".join(objectives)}}
    studies.find_or_create(name, storage, objectives, attributes)
    address = studies.location(name, storage)
    opened = (
        optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(address))
        if Path(address).is_file()
        else optuna.storages.RDBStorage(address, skip_compatibility_check=True, skip_table_creation=True)
    )
    study = optuna.load_study(study_name=name, storage=opened)
    assert study.metric_names == ["validation accuracy", "latency in seconds", "parameters"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]


def test_a_study_whose_objectives_have_no_names_yet_is_opened_and_gets_them():
    old = made_study("old", TrialState.COMPLETE)
    old._storage.set_study_system_attr(old._study_id, "study:metric_names", None)
    assert studies.find("old", AUTO).metric_names is None
    again = studies.find_or_create("old", AUTO, ("accuracy",), {})
    assert again.metric_names == ["validation accuracy"]
    assert again.best_value == 0.5


def test_a_password_is_not_shown():
    assert studies.without_password("postgresql://me:secret@host/db") == "postgresql://me@host/db"
    assert studies.without_password("postgresql://me@host:5432/db") == "postgresql://me@host:5432/db"
