"""Hyperparameter search: real workers on real studies, killed and broken off, and what is made of their trials."""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import psutil
import pytest
from conftest import ROOT
from optuna.trial import TrialState

from fmnist import data, device, models, training
from fmnist.errors import FmnistError
from fmnist.settings import Tune, Validation, parse
from fmnist.tuning import candidates, figures, leader, studies, trials

QUICK = {"model": "mlp", "dataset": "synthetic", "epochs": 1, "space": "width=64..128, layers=1, batch_size=256"}


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def command(**parameters):
    texts = {name: str(value) for name, value in (QUICK | parameters).items()}
    pairs = [text for name, value in texts.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "entry_points.tune", *pairs]


@contextmanager
def begun(store, **parameters):
    """The command, begun in a process of its own."""
    with subprocess.Popen(
        command(**parameters),
        cwd=store.folder,
        env=store.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def trial_training(name, storage="auto"):
    """A trial that trains: its MLflow run is there."""
    give_up, study = time.monotonic() + 60, None
    while time.monotonic() < give_up:
        study = study or studies.find(name, storage)
        for trial in studies.trials(study, TrialState.RUNNING) if study else ():
            if "run_id" in trial.user_attrs:
                return trial
        time.sleep(0.05)
    raise AssertionError("no trial began")


def nested(store, run_id):
    found = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{run_id}'", max_results=500)
    return sorted(found, key=lambda run: run.info.start_time)


# One `mlflow run . -e tune`, gone on with by another, read back from many sides:


@pytest.fixture(scope="module")
def store(new_store):
    return new_store()


@pytest.fixture(scope="module")
def first(store):
    return result_of(store.mlflow_run("tune", **QUICK, study="one", trials=8, workers=2, best=2, repeats=2))


@pytest.fixture(scope="module")
def second(store, first):
    done = store.mlflow_run("tune", **QUICK, study="one", trials=10, best=2, repeats=2)
    return result_of(done) | {"stderr": done.stderr}


def test_the_same_study_goes_on_to_the_asked_total_under_its_run(store, first, second):
    assert (first["num_complete"] + first["num_pruned"], second["num_complete"] + second["num_pruned"]) == (8, 10)
    assert first["run_id"] == second["run_id"]
    searched = [run for run in nested(store, first["run_id"]) if "seed" not in run.data.tags]
    assert sorted(int(run.data.tags["trial"]) for run in searched) == list(range(10))
    (own,) = store.client.search_runs([store.experiment], f"tags.`study.run` = '{first['run_id']}'")
    assert own.info.status == "FINISHED"


def test_trials_are_nested_runs_with_parameters_metrics_by_epoch_and_state(store, first):
    for run in nested(store, first["run_id"]):
        assert run.info.status == "FINISHED"
        assert run.data.tags["trial.state"] in ("complete", "pruned")
        assert len(store.client.get_metric_history(run.info.run_id, "val/accuracy")) == 1
        assert {"val/final_accuracy", "num_parameters", "perf/around_seconds", "perf/host_memory_bytes"} <= set(
            run.data.metrics
        )
        if run.data.tags.get("candidate") != str(trials.DEFAULT):
            assert 64 <= int(run.data.params["space.width"]) <= 128
            assert run.data.params["hyper.dense"] == run.data.params["space.width"]


def test_two_workers_share_the_threads_and_the_trials(store, first):
    found = studies.trials(studies.find("one", "auto"))[:8]
    assert len({trial.user_attrs["worker"]["pid"] for trial in found}) == 2
    runs = nested(store, first["run_id"])[:8]
    share = max(len(os.sched_getaffinity(0)) // 2, 1)
    assert {run.data.tags["device.threads"] for run in runs} == {str(share)}


def test_the_best_are_trained_again_on_fresh_seeds_beside_the_default(store, second):
    *found, default = second["candidates"]
    assert (len(found), default["candidate"], default["search_accuracy"]) == (2, "default recipe", None)
    assert all(each["validation_accuracy"]["n"] == 2 for each in (*found, default))
    again = [run for run in nested(store, second["run_id"]) if "seed" in run.data.tags]
    assert {run.data.params["recipe.seed"] for run in again} == {"1", "2"}
    searched = [run for run in nested(store, second["run_id"]) if "seed" not in run.data.tags]
    assert {run.data.params["recipe.seed"] for run in searched} == {"0"}


def test_the_winner_is_the_best_by_validation_mean_and_alone_is_tested_beside_the_default(second):
    winner, other, default = second["candidates"]
    assert winner["validation_accuracy"]["mean"] >= other["validation_accuracy"]["mean"]
    assert (winner["test_accuracy"]["n"], other["test_accuracy"], default["test_accuracy"]["n"]) == (2, None, 2)
    means = [each["test_accuracy"]["mean"] for each in (winner, default)]
    assert second["gain"]["mean"] == pytest.approx(means[0] - means[1])
    assert second["gain"]["n"] == 2
    assert winner["drop"] == pytest.approx(winner["search_accuracy"] - winner["validation_accuracy"]["mean"])


def test_the_run_of_the_study_carries_figures_plots_and_table(store, second):
    run = store.client.get_run(second["run_id"])
    winner = second["candidates"][0]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["winner/drop"] == pytest.approx(winner["drop"])
    assert run.data.metrics["winner/test_mean"] == winner["test_accuracy"]["mean"]
    assert run.data.metrics["default/validation_mean"] == second["candidates"][-1]["validation_accuracy"]["mean"]
    history = [each.value for each in store.client.get_metric_history(second["run_id"], "best/accuracy")]
    assert history == sorted(history)
    assert run.data.tags["best.command"] == winner["command"]
    assert f"{winner['validation_accuracy']['mean']:.2%}" in run.data.tags["mlflow.note.content"]
    plots = {"optimization_history", "param_importances", "parallel_coordinate", "slice"}
    wanted = {f"study/{name}.png" for name in plots} | {"study/study.html", "study/trials.csv", "verdict.md"}
    assert wanted <= store.artifacts(second["run_id"])
    page = (store.folder / "artifacts" / second["run_id"] / "artifacts/study/study.html").read_text()
    assert all(f'id="{name}"' in page for name in plots)
    table = (store.folder / "artifacts" / second["run_id"] / "artifacts/study/trials.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(table)))) == 10


def test_the_winner_is_registered_with_the_tags_of_its_study(store, second):
    name, version = second["registered"].split("/")
    registered = store.client.get_model_version(name, version)
    assert (registered.tags["study"], registered.tags["model"]) == ("one", "mlp")
    assert float(registered.tags["test.accuracy"]) > 0.2


def test_the_command_of_the_winner_can_be_typed(second):
    import shlex

    from fmnist.settings import Train

    winner = second["candidates"][0]
    words = shlex.split(winner["command"])
    given = dict(word.split("=", 1) for place, word in enumerate(words) if words[place - 1] == "-P")
    settings = parse(Train, given)
    plan = training.plan(settings)
    assert json.loads(json.dumps(plan.hyperparameters)) == winner["hyperparameters"]
    assert {name: winner[name] for name in vars(plan.recipe)} == vars(plan.recipe)
    assert (settings.augment, settings.dataset) == (winner["augment"], "synthetic")


def test_a_study_of_another_search_is_refused(store, second):
    done = store.run(command(study="one", model="lenet", space=""))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "error: study: one is of another search: model is mlp, now lenet" in done.stderr


# Broken off:


def test_a_killed_worker_loses_its_trial_alone_which_is_tried_once_more(new_store):
    store = new_store()
    with begun(store, study="killed", trials=3, epochs=10, best=1, repeats=1) as process:
        lost = trial_training("killed")
        os.kill(lost.user_attrs["worker"]["pid"], signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    result = json.loads(stdout.splitlines()[-1])
    assert result["num_complete"] + result["num_pruned"] == 3
    every = studies.trials(studies.find("killed", "auto"))
    assert Counter(trial.state for trial in every)[TrialState.FAIL] == 1
    (again,) = [trial for trial in every if trial.system_attrs.get("retry_history") == [lost.number]]
    assert (again.params, again.state) == (every[lost.number].params, TrialState.COMPLETE)
    assert every[lost.number].user_attrs["error"] == studies.LOST
    statuses = Counter(run.info.status for run in store.client.search_runs([store.experiment]))
    assert statuses == {"FINISHED": 1 + 3 + 2, "KILLED": 1}


def test_an_interrupted_search_ends_its_workers_and_goes_on_later(new_store):
    store = new_store()
    with begun(store, study="interrupted", trials=2, epochs=10, best=1, repeats=1) as process:
        running = trial_training("interrupted")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not psutil.pid_exists(running.user_attrs["worker"]["pid"])
    study = studies.find("interrupted", "auto")
    assert studies.trials(study, TrialState.RUNNING) == []
    assert {run.info.status for run in store.client.search_runs([store.experiment])} == {"KILLED"}
    done = store.run(command(study="interrupted", trials=2, epochs=10, best=1, repeats=1))
    assert result_of(done)["num_complete"] == 2
    again = studies.trials(studies.find("interrupted", "auto"))
    assert again[1].params == running.params  # it was tried again, first of all


def test_workers_end_when_their_leader_is_killed(new_store):
    store = new_store()
    with begun(store, study="orphans", trials=50, epochs=10) as process:
        running = trial_training("orphans")
        process.kill()
    give_up = time.monotonic() + 60
    while psutil.pid_exists(running.user_attrs["worker"]["pid"]):
        assert time.monotonic() < give_up
        time.sleep(0.1)
    study = studies.find("orphans", "auto")
    assert studies.trials(study, TrialState.RUNNING) == []
    assert len(studies.counted(study)) < 50


def test_three_trials_in_a_row_with_the_same_error_stop_the_search(new_store, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'entry_points.work' in sys.orig_argv:\n"
        "    import fmnist.training\n"
        "    def fit(*_, **__):\n"
        "        raise MemoryError('none left')\n"
        "    fmnist.training.fit = fit\n"
    )
    store = new_store()
    store.environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    done = store.run(command(study="failing", trials=10))
    assert done.returncode == 2
    assert "error: 3 trials in a row failed with the same error: MemoryError: none left" in done.stderr
    found = studies.trials(studies.find("failing", "auto"))
    assert [trial.state for trial in found] == [TrialState.FAIL] * 3
    assert {run.info.status for run in store.client.search_runs([store.experiment])} == {"FAILED"}


# A worker's loop in this process:


class Recorder:
    """Stands for MLflow."""

    def __init__(self):
        self.states, self.after = [], []

    @contextmanager
    def trial_run(self, parent, name, tags, point):
        yield name

    def log_plan(self, plan, device): ...

    def log_epoch(self, epoch): ...

    def log_trial(self, state, figures):
        self.states.append(state)

    def log_after(self, run_id, figures):
        self.after.append(figures)

    def log_model(self, trained, splits, plan):
        return "models:/none"


@pytest.fixture(scope="module")
def handful():
    splits = data.load("synthetic", data_dir="", validation=Validation(500), seed=0)
    train, validation = (
        data.Split(part.images[:1000], part.labels[:1000]) for part in (splits.train, splits.validation)
    )
    return data.Splits(train, validation, splits.test, splits.class_names, splits.manifest).without_test()


def worked(name, splits, **changes):
    """A study that one worker has worked on in this process, and what it told."""
    settings = Tune(**(QUICK | changes))
    search = trials.plan(settings)
    study = studies.find_or_create(name, "auto", search.objectives, {"identity": search.identity(splits)})
    recorder = Recorder()
    task = trials.Task(vars(settings), name, settings.trials, len(studies.ended(study)), "", 1)
    trials.work(task, search, splits, device.select("cpu", "tensorflow"), recorder)
    return studies.find(name, "auto"), recorder


def test_a_poor_trial_is_pruned_and_marked(handful, cpu):
    study, recorder = worked("pruned", handful, trials=12, epochs=3, pruner="median", sampler="random")
    counts = Counter(trial.state for trial in studies.trials(study))
    assert counts[TrialState.PRUNED] >= 1
    assert Counter(recorder.states) == {
        "complete": counts[TrialState.COMPLETE],
        "pruned": counts[TrialState.PRUNED],
    }
    assert all(figures["perf/around_seconds"] > 0 for figures in recorder.after)


def test_a_trial_that_fails_is_failed_with_its_error_and_the_others_go_on(handful, cpu, monkeypatch):
    fit, calls = training.fit, []

    def sometimes(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("for once")
        return fit(*arguments, **keywords)

    monkeypatch.setattr(training, "fit", sometimes)
    study, recorder = worked("once", handful, trials=3)
    assert recorder.states == ["complete", "failed", "complete"]
    assert studies.trials(study)[1].user_attrs["error"] == "MemoryError: for once"


def test_two_objectives_give_a_front(handful, cpu):
    study, _ = worked("front", handful, trials=6, objective="accuracy,parameters", sampler="random")
    front = {trial.number: trial.values for trial in study.best_trials}
    for trial in studies.trials(study):
        accuracy, parameters = trial.values
        beaten = any(a >= accuracy and p <= parameters and [a, p] != trial.values for a, p in front.values())
        assert beaten or trial.number in front
    search = trials.plan(Tune(**(QUICK | {"trials": 6, "objective": "accuracy,parameters"}), best=1))
    assert [each.number for each in candidates.best(study, search)] == [
        max(front, key=lambda number: front[number][0])
    ]
    assert leader.best_so_far(study)["front_size"] == len(front)
    assert "pareto_front" in figures.images(study)


def test_latency_is_measured_where_it_is_looked_for(handful, cpu):
    study, _ = worked("quick", handful, trials=1, objective="accuracy,latency")
    assert 0 < studies.trials(study)[0].values[1] < 1


def test_the_same_seed_proposes_the_same_points(handful, cpu):
    one, two = (worked(name, handful, trials=3)[0] for name in ("same-1", "same-2"))
    assert [trial.params for trial in studies.trials(one)] == [trial.params for trial in studies.trials(two)]
    assert [trial.values for trial in studies.trials(one)] == [trial.values for trial in studies.trials(two)]


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "grid"])
def test_workers_never_draw_a_point_twice(sampler):
    """Of a space of 12 points, two workers by turns draw each once."""
    fixed = "layers=1, taper=1.0, activation=relu, learning_rate=0.001, augment=none, optimizer=adam"
    settings = Tune(model="mlp", sampler=sampler, trials=12, space=f"{fixed}, width=64|96|128, batch_size=32..256")
    search = trials.plan(settings)
    name = f"distinct-{sampler}"
    studies.find_or_create(name, "auto", ("accuracy",), {})
    tasks = [trials.Task(vars(settings), name, 12, 0, "", 1, index) for index in (0, 1)]
    pair = [studies.find(name, "auto") for _ in tasks]
    for study, task in zip(pair, tasks, strict=True):
        study.sampler = trials._sampler(search, study, task)
    for number in range(12):
        trial = pair[number % 2].ask()
        trials._suggest(trial, search.space)
        pair[number % 2]._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [number / 12])
    points = [(each.params["width"], each.params["batch_size"]) for each in studies.trials(pair[0])]
    assert len(set(points)) == 12


@pytest.mark.parametrize("pruner", ["hyperband", "median", "none"])
def test_every_pruner_works(pruner, handful, cpu):
    study, _ = worked(f"by-{pruner}", handful, trials=2, epochs=2, pruner=pruner)
    assert len(studies.counted(study)) == 2
    search = trials.plan(Tune(**(QUICK | {"pruner": pruner})))
    assert type(trials._pruner(search)).__name__.lower() == {"none": "nop"}.get(pruner, pruner) + "pruner"


def test_a_worker_never_has_the_test_split(monkeypatch, cpu):
    from entry_points import work

    given = []
    monkeypatch.setattr(trials, "work", lambda task, search, splits, *_: given.append(splits))
    task = trials.Task(vars(Tune(**QUICK, device="cpu")), "s", 1, 0, "", 1)
    work.work(json.dumps(vars(task)))
    assert (len(given[0].train) > 0, len(given[0].test)) == (True, 0)


def test_a_study_without_variety_still_has_its_plots():
    study = studies.find_or_create("flat", "auto", ("accuracy",), {"identity": {"objective": "accuracy"}})
    assert figures.images(study) == {}
    study.add_trial(optuna.create_trial(values=[0.5], params={}, distributions={}))
    assert set(figures.images(study)) == {"optimization_history"}
    assert "optimization_history" in figures.page(study)


def made_study(name, *states, **attributes):
    """A study with trials in some states, each with an accuracy by its number."""
    study = studies.find_or_create(
        name, "auto", ("accuracy",), {"identity": {"objective": "accuracy"}} | attributes
    )
    for number, state in enumerate(states):
        value = 0.5 + number / 100 if state == TrialState.COMPLETE else None
        trial = study.ask({"width": optuna.distributions.IntDistribution(64, 1024)})
        if state == TrialState.FAIL:
            trial.set_user_attr("error", "E")
        if state.is_finished():
            study.tell(trial, value, state=state)
    return study


def test_an_interrupted_trial_is_tried_again_and_again_and_a_lost_one_once():
    for name, interrupted, tries in (("stopped-twice", "me", 3), ("lost-twice", None, 2)):
        study = made_study(name, TrialState.RUNNING)
        gone = {"host": socket.gethostname(), "pid": 0, "created": 0.0, "command": "me"}
        for _ in range(2):
            running = studies.trials(study, TrialState.RUNNING)[0]
            study._storage.set_trial_user_attr(running._trial_id, "worker", gone)
            assert len(studies.sweep(study, "auto", interrupted=interrupted)) == 1
            assert studies.sweep(study, "auto", interrupted=interrupted) == []
            if studies.trials(study, TrialState.WAITING):
                study.ask()
        assert len(studies.trials(study)) == tries
        assert len(studies.counted(study)) == 1
        assert studies.repeated_error(study, 0) is None


def test_trials_that_are_lost_together_and_tried_again_do_not_stop_a_search():
    study = made_study("lost-together", *[TrialState.RUNNING] * 3)
    for trial in studies.trials(study):
        worker = {"host": socket.gethostname(), "pid": 0, "created": 0.0}
        study._storage.set_trial_user_attr(trial._trial_id, "worker", worker)
    assert len(studies.sweep(study, "auto")) == 3
    assert studies.repeated_error(study, 0) is None
    assert studies.remaining(study, 3) == 3


def test_a_configuration_that_fails_on_a_fresh_seed_is_trained_on_it_again_and_else_is_no_winner():
    settings = Tune(**(QUICK | {"space": "layers=1, activation=relu, augment=none"}), best=2, repeats=2)
    search = trials.plan(settings)
    study = made_study("search", TrialState.COMPLETE, TrialState.COMPLETE)
    again = made_study("search.again")

    def train(fails):
        asked = candidates.ask_again(study, again, search)
        for waiting in studies.trials(again, TrialState.WAITING):
            candidate, seed = waiting.user_attrs["candidate"], waiting.user_attrs["seed"]
            trial = again.ask()
            trial.set_user_attr("precision", "float32")
            if fails and (candidate, seed) == (1, 2):
                trial.set_user_attr("error", "E")
                again.tell(trial, state=TrialState.FAIL)
            else:
                again.tell(trial, 0.9 if candidate == 1 else 0.8)
        return asked

    assert train(fails=True) == 6
    assert [each.trial for each in candidates.candidates(study, again, search)] == [0, 1, trials.DEFAULT]
    assert train(fails=False) == 7
    assert [each.trial for each in candidates.candidates(study, again, search)] == [1, 0, trials.DEFAULT]


def test_two_trials_that_come_to_the_same_training_count_once_among_the_best():
    search = trials.plan(Tune(**QUICK, best=3))
    study = studies.find_or_create("twins", "auto", ("accuracy",), {"identity": {"objective": "accuracy"}})
    for taper, width in ((0.25, 64), (0.5, 64), (0.5, 65)):  # of one layer, the taper says nothing
        point = {"width": width, "layers": 1, "taper": taper}
        kinds = {name: trials._distribution(models.MODELS["mlp"].space[name]) for name in point}
        study.add_trial(optuna.create_trial(values=[0.5], params=point, distributions=kinds))
    assert [trial.number for trial in candidates.best(study, search)] == [0, 2]


# Several machines:


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A real PostgreSQL server on loopback; gives a storage."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    programs = next((folder for folder in found if (folder / "initdb").exists()), None)
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed")
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    folder = Path(tmp_path_factory.mktemp("postgres"))
    as_user = []
    if os.getuid() == 0:  # as root it refuses to run
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        for each in (folder, *folder.parents[:2]):
            each.chmod(0o755)
        shutil.chown(folder, "nobody")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = [*as_user, str(programs / "initdb"), "-D", str(folder / "data"), "-U", "fmnist", "-A", "trust"]
    subprocess.run(base, check=True, capture_output=True, cwd=folder)
    options = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    with subprocess.Popen(
        [*as_user, str(programs / "postgres"), "-D", str(folder / "data"), *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        storage = f"postgresql://fmnist@127.0.0.1:{port}/postgres"
        try:
            give_up = time.monotonic() + 30
            while True:
                try:
                    studies.check_storage(storage)
                    break
                except FmnistError:
                    assert time.monotonic() < give_up
                    time.sleep(0.2)
            yield storage
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown


def test_a_second_command_joins_a_study_on_postgresql(new_store, postgres):
    store = new_store()
    parameters = {"study": "shared", "trials": 12, "epochs": 10, "best": 1, "repeats": 1, "storage": postgres}
    with begun(store, **parameters) as leader:
        trial_training("shared", postgres)
        helped = result_of(store.run(command(**parameters)))
        stdout, stderr = leader.communicate(timeout=200)
    assert leader.returncode == 0, stderr
    assert (helped["study"], helped["leads"]) == ("shared", False)
    result = json.loads(stdout.splitlines()[-1])
    every = studies.trials(studies.find("shared", postgres))
    assert len(every) == result["num_complete"] + result["num_pruned"] == 12
    assert len({trial.user_attrs["worker"]["pid"] for trial in every}) == 2
    assert len({tuple(trial.params.items()) for trial in every}) == 12
    assert len([run for run in nested(store, result["run_id"]) if "seed" not in run.data.tags]) == 12


def test_a_trial_of_another_machine_whose_heart_stops_is_tried_once_more(postgres, monkeypatch):
    """The other machine: a process that says that it is there, and is killed."""
    monkeypatch.setattr(studies, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(studies, "GRACE_SECONDS", 2)
    study = studies.find_or_create("hearts", postgres, ("accuracy",), {})
    code = (
        "import os, sys\n"
        "from fmnist.tuning import studies\n"
        "studies.HEARTBEAT_SECONDS, studies.GRACE_SECONDS = 1, 2\n"
        "def killed(trial):\n"
        "    trial.suggest_int('width', 1, 1000)\n"
        "    trial.set_user_attr('worker', {'host': 'elsewhere', 'pid': 1, 'created': 0})\n"
        "    os.kill(os.getpid(), 9)\n"
        "studies.find('hearts', sys.argv[1]).optimize(killed, n_trials=1)\n"
    )
    subprocess.run([sys.executable, "-c", code, postgres], cwd=ROOT, check=False)
    studies.sweep(study, postgres)  # not ours to judge
    assert [trial.state for trial in studies.trials(study)] == [TrialState.RUNNING]
    time.sleep(3)
    studies.sweep_other_machines(study)
    lost, again = studies.trials(study)
    assert (lost.state, again.state, again.params) == (TrialState.FAIL, TrialState.WAITING, lost.params)
    assert studies.remaining(study, 1) == 1


def test_workers_run_on_the_nodes_of_a_ray_cluster(new_store):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    store = new_store()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        parameters = {"trials": 6, "workers": 2, "epochs": 10, "best": 1, "repeats": 1}
        done = store.run(command(study="on-ray", launcher="ray", ray_address=cluster.address, **parameters))
    finally:
        cluster.shutdown()
    result = result_of(done)
    assert result["num_complete"] + result["num_pruned"] == 6
    found = studies.trials(studies.find("on-ray", "auto"))
    assert len({trial.user_attrs["worker"]["pid"] for trial in found}) == 2
    assert len({trial.user_attrs["worker"]["parent"] for trial in found}) == 2  # each node's own raylet


# Bad input:


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trials": "0"}, "trials: expected at least 1, received 0"),
        ({"sampler": "bayes"}, "unknown sampler 'bayes'."),
        ({"pruner": "medain"}, "unknown pruner 'medain'. Did you mean 'median'?"),
        ({"objective": "accuracy,speed"}, "unknown objective 'speed'."),
        ({"objective": "latency"}, "objective: expected accuracy, alone or with others"),
        ({"objective": "accuracy,latency", "pruner": "median"}, "pruner=median takes one objective"),
        ({"objective": "accuracy,latency", "sampler": "cmaes"}, "sampler=cmaes takes one objective"),
        ({"space": "wdith=64..128"}, "unknown dimension of the space 'wdith'. Did you mean 'width'?"),
        ({"space": "width=128..64"}, "space: width: expected a range low..high"),
        ({"storage": "sqlite:///x.db"}, "storage: expected auto or postgresql://user@host/database"),
        (
            {"storage": "postgresql://nobody:secret@127.0.0.1:1/x"},
            "storage: no PostgreSQL answers at postgresql://nobody@127",
        ),
        ({"study": "a/b"}, "study: expected letters, digits"),
        ({"sampler": "grid"}, "sampler=grid: expected at most 10,000 points"),
        ({"registered_model": "a/b"}, "registered_model: expected a name"),
        ({"workers": "0"}, "workers: expected at least 1"),
        ({"launcher": "slurm"}, "unknown launcher 'slurm'."),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_made(
    arguments, message, new_store, capfd, monkeypatch
):
    from entry_points import tune

    monkeypatch.setattr(tracking, "run", lambda settings: pytest.fail("a run was begun"))
    with pytest.raises(FmnistError, match=re.escape(message)) as caught:
        tune.tune(parse(Tune, {"dataset": "synthetic", "space": ""} | arguments))
    assert "\n" not in str(caught.value).strip()
    assert "secret" not in str(caught.value)


def test_more_trials_than_points_are_refused():
    fixed = (
        "layers=1, taper=1.0, activation=relu, learning_rate=0.001, augment=none, optimizer=adam, batch_size=64"
    )
    with pytest.raises(FmnistError, match="trials: expected at most the 2 points of the space, received 3"):
        trials.plan(Tune(model="mlp", trials=3, space=f"{fixed}, width=64|96"))


def test_bad_input_is_refused_before_anything_heavy_is_imported(new_store):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['tune', '--dataset', 'synthetic', '--space', 'width=9..1']\n"
        "try:\n    runpy.run_module('entry_points.tune', run_name='__main__')\n"
        "finally:\n    print({'tensorflow', 'keras', 'mlflow', 'matplotlib', 'pandas', 'ray'} & set(sys.modules))"
    )
    store = new_store()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=store.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "set()\n", 1)


def test_a_password_is_not_shown():
    assert studies.without_password("postgresql://me:secret@host/db") == "postgresql://me@host/db"
    assert studies.without_password("postgresql://me@host:5432/db") == "postgresql://me@host:5432/db"


def test_pinned_processes_have_threads_of_their_own():
    code = (
        "import os, sys\n"
        "from fmnist import machine\n"
        "with processes.pinned(1):\n"
        "    print(sorted(os.sched_getaffinity(0)), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    number = len(os.sched_getaffinity(0))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(number)
    ]
    threads = [json.loads(process.stdout.readline()) for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(threads) == [[each] for each in sorted(os.sched_getaffinity(0))]
