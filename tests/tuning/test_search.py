"""Whole searches: one that is broken off in every way and goes on, read back from many sides; several machines."""

import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from conftest import ROOT
from optuna.trial import TrialState
from searches import AUTO, QUICK

from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.settings import Tune
from fmnist.tuning import studies, trials


def result_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def command(**parameters):
    texts = {name: str(value) for name, value in (QUICK | parameters).items()}
    pairs = [text for name, value in texts.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "entry_points.tune", *pairs]


@contextmanager
def begun(store, words):
    """A command, begun in a process of its own."""
    with subprocess.Popen(
        words, cwd=store.folder, env=store.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process):
    """The result of a command that was begun."""
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1]) | {"stderr": stderr}


def trial_training(name, storage=AUTO, after=-1):
    """A trial that trains, of a number above another: its MLflow run is there, and its process lives."""
    give_up, study = time.monotonic() + 60, None
    while time.monotonic() < give_up:
        study = study or studies.find(name, storage)
        for trial in studies.trials(study, TrialState.RUNNING) if study else ():
            known = "run_id" in trial.user_attrs and trial.number > after
            if known and psutil.pid_exists(trial.user_attrs["worker"]["pid"]):
                return trial
        time.sleep(0.02)
    raise AssertionError("no trial began")


def nested(store, run_id):
    found = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{run_id}'", max_results=500)
    return sorted(found, key=lambda run: run.info.start_time)


def searched(store, run_id):
    """The runs of a search's own trials, that came to their end."""
    return [
        run for run in nested(store, run_id) if "candidate" not in run.data.tags and run.info.status == "FINISHED"
    ]


# One study: a command that is hung up on, one that is killed, one whose worker is killed, and one that goes on.


@pytest.fixture(scope="module")
def store(new_store):
    return new_store()


@pytest.fixture(scope="module")
def hung_up(store):
    """The trial at which the terminal was closed, and the command's exit code."""
    with begun(store, command(study="one", trials=6)) as process:
        running = trial_training("one")
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    study = studies.find("one", AUTO)
    return {
        "trial": running,
        "code": process.returncode,
        "worker": psutil.pid_exists(running.user_attrs["worker"]["pid"]),
        "running": studies.trials(study, TrialState.RUNNING),
        "statuses": {run.info.status for run in store.client.search_runs([store.experiment])},
    }


@pytest.fixture(scope="module")
def orphaned(hung_up, store):
    """A trial whose leader was killed, and all that had begun when its worker had ended."""
    with begun(store, command(study="one", trials=50)) as process:
        running = trial_training("one", after=hung_up["trial"].number)
        process.kill()
    psutil.wait_procs([each for each in psutil.process_iter() if each.pid == running.user_attrs["worker"]["pid"]])
    study = studies.find("one", AUTO)
    return {
        "trial": running,
        "running": studies.trials(study, TrialState.RUNNING),
        "counted": len(studies.counted(study)),
    }


@pytest.fixture(scope="module")
def first(store, orphaned):
    words = store.command("tune", **QUICK, study="one", trials=8, workers=2, best=2, repeats=2)
    with begun(store, words) as process:
        lost = trial_training("one", after=orphaned["trial"].number)
        os.kill(lost.user_attrs["worker"]["pid"], signal.SIGHUP)
        return ended(process) | {"lost": lost}


@pytest.fixture(scope="module")
def second(store, first):
    done = store.here("tune", **QUICK, study="one", trials=9, best=2, repeats=2)
    return result_of(done) | {"stderr": done.stderr}


def test_a_closed_terminal_ends_a_search_its_workers_and_its_runs(hung_up):
    assert hung_up["code"] == 128 + signal.SIGHUP
    assert not hung_up["worker"]
    assert hung_up["running"] == []
    assert hung_up["statuses"] == {"KILLED"}


def test_an_interrupted_trial_is_tried_again_first_of_all(hung_up, orphaned):
    again = orphaned["trial"]
    assert again.params == hung_up["trial"].params
    assert again.system_attrs["retry_history"] == [hung_up["trial"].number]


def test_workers_end_when_their_leader_is_killed(orphaned):
    assert orphaned["running"] == [], "the worker that lost its leader came to the end of its trial"
    assert orphaned["counted"] < 50


def test_a_worker_that_is_killed_loses_its_trial_alone_which_is_tried_once_more(store, first):
    every, lost = studies.trials(studies.find("one", AUTO)), first["lost"]
    assert every[lost.number].state == TrialState.FAIL
    assert studies.error(studies.find("one", AUTO), every[lost.number]) == studies.LOST
    (again,) = [trial for trial in every if trial.system_attrs.get("retry_history", [None])[-1] == lost.number]
    assert (again.params, again.state) == (lost.params, TrialState.COMPLETE)
    run = store.client.get_run(lost.user_attrs["run_id"])
    assert (run.info.status, run.data.tags["trial.state"]) == ("KILLED", "lost")


def test_the_same_study_goes_on_to_the_asked_total_under_its_run(store, first, second):
    assert (first["num_complete"] + first["num_pruned"], second["num_complete"] + second["num_pruned"]) == (8, 9)
    assert first["run_id"] == second["run_id"]
    numbers = [int(run.data.tags["trial"]) for run in searched(store, first["run_id"])]
    assert len(set(numbers)) == len(numbers) == 9
    own = store.client.search_runs([store.experiment], f"tags.`study.run` = '{first['run_id']}'")
    assert {run.info.status for run in own} == {"FINISHED", "RUNNING"}, "RUNNING: the command that was killed"


def test_trials_are_nested_runs_with_parameters_metrics_by_epoch_and_state(store, first):
    for run in nested(store, first["run_id"]):
        if run.info.status == "KILLED":
            continue
        assert run.info.status == "FINISHED"
        assert run.data.tags["trial.state"] in ("complete", "pruned")
        assert len(store.client.get_metric_history(run.info.run_id, "val/accuracy")) == 1
        assert {"val/final_accuracy", "num_parameters", "perf/around_seconds", "perf/host_memory_bytes"} <= set(
            run.data.metrics
        )
        if run.data.tags.get("candidate") != str(trials.DEFAULT):
            assert 64 <= int(run.data.params["space.width"]) <= 128
            assert run.data.params["hyper.dense"] == run.data.params["space.width"]


def test_two_workers_share_the_threads_and_the_trials(store, orphaned, first):
    found = [
        trial
        for trial in studies.trials(studies.find("one", AUTO), TrialState.COMPLETE)
        if trial.number > orphaned["trial"].number
    ]
    assert len({trial.user_attrs["worker"]["pid"] for trial in found[:7]}) >= 2
    share = max(len(os.sched_getaffinity(0)) // 2, 1)
    assert {trial.user_attrs["settled"]["num_threads"] for trial in found[:6]} == {share}


def test_the_best_are_trained_again_on_fresh_seeds_beside_the_default(store, second):
    *found, default = second["candidates"]
    assert (len(found), default["candidate"], default["search_accuracy"]) == (2, "default recipe", None)
    assert all(each["validation_accuracy"]["n"] == 2 for each in (*found, default))
    fresh = [run for run in nested(store, second["run_id"]) if "candidate" in run.data.tags]
    assert {run.data.params["recipe.seed"] for run in fresh} == {"1", "2"}
    assert {run.data.params["recipe.seed"] for run in searched(store, second["run_id"])} == {"0"}


def test_with_jax_the_fresh_seeds_of_a_configuration_are_trained_at_once(new_store):
    pytest.importorskip("jax", reason="the extra jax is not installed")
    store = new_store()
    with begun(store, command(study="jax", trials=1, best=1, repeats=2, backend="jax")) as process:
        result = ended(process)
    assert [each["validation_accuracy"]["n"] for each in result["candidates"]] == [2, 2]
    runs = nested(store, result["run_id"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    at_once = [(run.data.tags.get("candidate"), run.data.tags["seeds_at_once"]) for run in runs]
    assert sorted(at_once, key=str) == [("-1", "2"), ("-1", "2"), ("0", "2"), ("0", "2"), (None, "1")]
    for run in runs:
        epochs = store.client.get_metric_history(run.info.run_id, "val/accuracy")
        assert [each.value for each in epochs] == [run.data.metrics["val/final_accuracy"]]


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
    artifacts = store.folder / "artifacts" / second["run_id"] / "artifacts"
    page = (artifacts / "study/study.html").read_text()
    assert all(f'id="{name}"' in page for name in plots)
    table = (artifacts / "study/trials.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(table)))) == len(studies.trials(studies.find("one", AUTO)))


def test_the_winner_is_registered_with_the_tags_of_its_study_and_a_card(store, second):
    name, version = second["registered"].split("/")
    registered = store.client.get_model_version(name, version)
    winner = second["candidates"][0]
    n = winner["test_accuracy"]["n"]
    assert registered.description.startswith(
        f"**{winner['test_accuracy']['mean']:.2%} test accuracy, mean of {n} "
    )
    training = store.client.get_run(registered.run_id)
    assert f"/runs/{registered.run_id})" in registered.description
    assert "test/confusion_matrix.png" in store.artifacts(registered.run_id)
    assert f"{training.data.metrics['test/accuracy']:.4f}" == registered.tags["test.accuracy"]
    assert training.info.run_name == f"tune mlp · {winner['candidate']} again · seed {registered.tags['seed']}"
    assert (registered.tags["study"], registered.tags["model"]) == ("one", "mlp")
    assert float(registered.tags["test.accuracy"]) > 0.2


def test_the_command_of_the_winner_trains_the_very_same_again(store, second):
    """Its own words, with what keeps it to so many threads, but for the launcher."""
    winner = second["candidates"][0]
    words = shlex.split(winner["command"])
    start = words.index("mlflow")
    typed = [*words[:start], sys.executable, "-m", "entry_points.train", *words[start + 5 :]]
    again = result_of(store.run([*typed, "-P", "registered_model=none"]))
    assert again["validation_accuracy"] == winner["validation_accuracy"]["max"]
    (trained,) = [
        run
        for run in nested(store, second["run_id"])
        if run.data.tags.get("candidate") == winner["candidate"].removeprefix("trial ")
        and run.data.metrics["val/final_accuracy"] == winner["validation_accuracy"]["max"]
    ]
    losses = [
        [each.value for each in store.client.get_metric_history(run_id, "val/loss")]
        for run_id in (again["run_id"], trained.info.run_id)
    ]
    assert losses[0] == losses[1]


def test_a_study_of_another_search_is_refused(store, second):
    done = store.run(command(study="one", model="lenet", space=""))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "error: study: one is of another search: model is mlp, now lenet" in done.stderr


# Several machines:


def test_a_second_command_joins_a_study_on_postgresql(new_store, postgres):
    store = new_store()
    words = command(study="shared", trials=10, epochs=3, best=1, repeats=1, storage=postgres.storage)
    with begun(store, words) as one, begun(store, words) as other:
        results = sorted((ended(one), ended(other)), key=lambda result: "leads" in result)
    leader, helper = results
    assert (helper["study"], helper["leads"]) == ("shared", False)
    every = studies.trials(studies.find("shared", postgres.storage))
    assert len(every) == leader["num_complete"] + leader["num_pruned"] == 10
    assert len({trial.user_attrs["worker"]["pid"] for trial in every}) == 2
    assert len({tuple(trial.params.items()) for trial in every}) == 10
    assert len(searched(store, leader["run_id"])) == 10


def test_workers_run_on_the_nodes_of_a_ray_cluster(new_store, monkeypatch):
    """Each node has one thread: two workers at a time are on two nodes."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by itself Ray lets all else go first: all other tests
    store = new_store()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        parameters = {"trials": 6, "workers": 2, "epochs": 3, "best": 1, "repeats": 1}
        done = store.run(command(study="on-ray", launcher="ray", ray_address=cluster.address, **parameters))
    finally:
        cluster.shutdown()
    result = result_of(done)
    assert result["num_complete"] + result["num_pruned"] == 6
    found = studies.trials(studies.find("on-ray", AUTO))
    spans = {}
    for trial in found:
        pid = trial.user_attrs["worker"]["pid"]
        begin, end = spans.get(pid, (trial.datetime_start, trial.datetime_complete))
        spans[pid] = min(begin, trial.datetime_start), max(end, trial.datetime_complete)
    (one, other) = spans.values()
    assert one[0] < other[1], "both at a time"
    assert other[0] < one[1], "both at a time"


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
        ({"space": "small_side=14|20"}, "space: small_side=14|20: lenet has layers for images of one side alone"),
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
def test_bad_input_is_refused_in_one_line_before_anything_is_made(arguments, message, monkeypatch):
    from entry_points import tune
    from fmnist.tracking import runs

    monkeypatch.setattr(runs, "run", lambda settings: pytest.fail("a run was begun"))
    with pytest.raises(FmnistError, match=re.escape(message)) as caught:
        tune.tune(parse(Tune, {"dataset": "synthetic", "space": ""} | arguments))
    assert "\n" not in str(caught.value).strip()
    assert "secret" not in str(caught.value)


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
