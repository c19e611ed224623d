"""The lead of a search: workers that come and go, errors that repeat, a database that is away."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
from conftest import ROOT
from optuna.trial import TrialState
from searches import AUTO, QUICK, Recorder, made_study

from fmnist import data
from fmnist.errors import FmnistError
from fmnist.options import texts
from fmnist.settings import Tune, Validation
from fmnist.tuning import leader, studies, trials

WORKER = (
    "import sys\nfrom fmnist.tuning import studies\n"
    "name, storage, total = sys.argv[1:]\n"
    "study = studies.find(name, storage)\n"
    "study.sampler = __import__('optuna').samplers.RandomSampler()\n"
    "with studies.at_work(name, storage) as process:\n"
    "    while studies.remaining(study, int(total)):\n"
    "        def objective(trial):\n"
    "            trial.set_user_attr('worker', process)\n"
    "            return trial.suggest_float('x', 0, 1)\n"
    "        study.optimize(objective, n_trials=1)\n"
)


class Quick:
    """A worker whose trials take no time."""

    def __init__(self, task, code=WORKER):
        words = [sys.executable, "-c", code, task.study, task.settings["storage"], str(task.total)]
        self.process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)

    def error(self):
        code = self.process.poll()
        return None if code is None else "" if not code else f"exit code {code}"

    def stop(self):
        self.process.kill()
        self.process.wait()


def task_of(study, total, **changes):
    return trials.Task(texts(Tune(**QUICK, **changes)), study.study_name, total, 0, "", 1)


def test_a_search_goes_on_after_its_database_was_started_anew(postgres):
    study = made_study("goes-on", storage=postgres.storage)
    told = []

    def on_trial(trial):
        told.append(trial.number)
        if len(told) == 1:
            postgres.stop()
            postgres.start()

    with studies.Lead("goes-on", postgres.storage) as lead:
        task = task_of(study, 10, storage=postgres.storage)
        took = leader.keep_at_it(study, task, Quick, on_trial, lead.keep)
        lead.keep()  # as before each step that one process alone may take
        with studies.Lead("goes-on", postgres.storage) as other:
            assert (lead.leads, other.leads) == (True, False)
    assert took["trials_per_hour"] > 0
    assert sorted(told) == [trial.number for trial in studies.trials(study)]
    assert sum(trial.state == TrialState.COMPLETE for trial in studies.trials(study)) >= 9
    assert len(studies.counted(study)) == 10


def test_a_leader_that_has_lost_the_lead_stops_with_its_workers(postgres):
    study, started = made_study("lost-lead", storage=postgres.storage), []

    def start(task):
        started.append(Quick(task, "import time; time.sleep(60)"))
        postgres.stop()
        postgres.start()
        other.append(studies.Lead("lost-lead", postgres.storage))
        return started[-1]

    other = []
    with studies.Lead("lost-lead", postgres.storage) as lead:
        task = task_of(study, 3, storage=postgres.storage)
        with pytest.raises(FmnistError, match="another command leads lost-lead"):
            leader.keep_at_it(study, task, start, lambda _: None, lead.keep)
    assert [lead.leads for lead in other] == [True]
    assert [each.process.returncode for each in started] == [-9]
    other[0].__exit__()


def test_three_trials_in_a_row_with_the_same_error_stop_a_search():
    study = made_study("failed-alike", *[TrialState.FAIL] * 3)
    with pytest.raises(FmnistError, match="3 trials in a row failed with the same error: E"):
        leader.keep_at_it(study, task_of(study, 10), Quick, lambda _: None, lambda: None)


def test_workers_that_end_without_a_trial_stop_a_search():
    study, started = made_study("no-trial"), []

    def start(task):
        started.append(Quick(task, "raise SystemExit(3)"))
        return started[-1]

    with pytest.raises(FmnistError, match="workers end without a trial: exit code 3"):
        leader.keep_at_it(study, task_of(study, 10), start, lambda _: None, lambda: None)
    assert len(started) == 3


def test_what_ends_a_search_ends_its_run_and_its_lead():
    splits = data.load("synthetic", data_dir="", validation=Validation(500), seed=0)
    search = trials.plan(Tune(**QUICK))

    def start(task):
        raise KeyboardInterrupt

    tracking = Recorder()
    command = leader.Command(search, splits, "ended", "cpu", start, tracking, lambda *_: nullcontext())
    with pytest.raises(KeyboardInterrupt):
        leader.tune(command, "run")
    assert tracking.told == ["KeyboardInterrupt"]
    with studies.Lead("ended", AUTO) as lead:
        assert lead.leads
