"""The loop of a worker, in this process: how trials are trained, ended early, timed and recorded."""

import gc
import json
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from searches import AUTO, QUICK, Recorder

from fmnist import data, device, processes, training
from fmnist.errors import FmnistError
from fmnist.options import parse, texts
from fmnist.settings import Tune, Validation
from fmnist.tuning import candidates, figures, leader, sampling, studies, trials


@pytest.fixture(scope="module")
def handful():
    splits = data.load("synthetic", data_dir="", validation=Validation(500), seed=0)
    train, validation = (
        data.Split(part.images[:1000], part.labels[:1000]) for part in (splits.train, splits.validation)
    )
    return data.Splits(train, validation, splits.test, splits.class_names, splits.manifest).without_test()


@pytest.fixture
def quick_fit(monkeypatch):
    """Trainings that take no time: the wider, the better."""

    def fit(plan, splits, on_epoch):
        width = plan.hyperparameters["dense"][0]
        accuracy = width / 1000 + plan.recipe.learning_rate
        epochs = []
        for number in range(1, plan.recipe.epochs + 1):
            epochs.append(training.Epoch(number, 1.0, accuracy, 1.0, accuracy * number, 1.0, 1.0, False))
            on_epoch(epochs[-1])
        model = SimpleNamespace(count_params=lambda: 794 * width)
        ends = (tuple(epochs), epochs[-1], False)
        viewed = None if plan.recipe.views == "none" else SimpleNamespace(accuracy=2.0)
        return training.Fitted(model, lambda images: images, *ends, lambda images: images, viewed)

    monkeypatch.setattr(training, "fit", fit)


def worked(name, splits, **changes):
    """A study that one worker has worked on in this process, and what it told."""
    settings = parse(Tune, {key: str(value) for key, value in (QUICK | changes).items()})
    search = trials.plan(settings)
    study = studies.find_or_create(name, AUTO, search.objectives, {"identity": search.identity(splits)})
    recorder = Recorder()
    task = trials.Task(texts(settings), name, settings.trials, len(studies.ended(study)), "", 1)
    quiet = processes.Quiet(wanted="latency" in search.objectives)
    with quiet:
        trials.work(task, search, splits, device.select("cpu", "tensorflow"), recorder, quiet)
    return studies.find(name, AUTO), recorder


def test_a_poor_trial_is_pruned_and_marked(handful, cpu, quick_fit):
    study, recorder = worked("pruned", handful, trials=12, epochs=3, pruner="median", sampler="random")
    counts = Counter(trial.state for trial in studies.trials(study))
    assert counts[TrialState.PRUNED] >= 1
    assert Counter(recorder.states) == {
        "complete": counts[TrialState.COMPLETE],
        "pruned": counts[TrialState.PRUNED],
    }
    assert all(told["perf/around_seconds"] > 0 for told in recorder.after)


def test_the_accuracy_of_a_trial_is_that_with_its_views(handful, cpu, quick_fit):
    space = f"{QUICK['space']}, views=none|flip"
    study, _ = worked("viewed", handful, trials=6, space=space, sampler="random", pruner="none")
    values = {trial.params["views"]: trial.value for trial in studies.trials(study)}
    assert values["flip"] == 2
    assert values["none"] < 2


def test_a_trial_that_fails_is_failed_with_its_error_and_the_others_go_on(handful, cpu, quick_fit, monkeypatch):
    fit, calls = training.fit, []

    def sometimes(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("for once")
        return fit(*arguments, **keywords)

    monkeypatch.setattr(training, "fit", sometimes)
    study, recorder = worked("once", handful, trials=3)
    assert recorder.states == ["complete", "failed", "complete"]
    assert studies.error(study, studies.trials(study)[1]) == "MemoryError: for once"


def test_a_worker_stops_after_three_trials_in_a_row_with_the_same_error(handful, cpu, monkeypatch):
    def fit(*_, **__):
        raise MemoryError("none left")

    monkeypatch.setattr(training, "fit", fit)
    study, recorder = worked("failing", handful, trials=10)
    assert recorder.states == ["failed"] * 3
    assert studies.repeated_error(study, 0) == "MemoryError: none left"


def test_two_objectives_give_a_front(handful, cpu, quick_fit):
    study, _ = worked("front", handful, trials=6, objective="accuracy,parameters", sampler="random")
    front = {trial.number: trial.values for trial in study.best_trials}
    for trial in studies.trials(study):
        accuracy, parameters = trial.values
        beaten = any(a >= accuracy and p <= parameters and [a, p] != trial.values for a, p in front.values())
        assert beaten or trial.number in front
    search = trials.plan(parse(Tune, {**QUICK, "epochs": "1", "objective": "accuracy,parameters", "best": "1"}))
    assert [each.number for each in candidates.best(study, search)] == [
        max(front, key=lambda number: front[number][0])
    ]
    assert leader.best_so_far(study)["front_size"] == len(front)
    assert "pareto_front" in figures.images(study)


def test_latency_is_timed_while_no_other_worker_computes(handful, cpu, monkeypatch):
    """Each of two workers in turn: while one times, the other is between two epochs."""
    alone, told = processes.Quiet.alone, []

    @contextmanager
    def watched(quiet):
        with alone(quiet):
            told.append("alone")
            yield
        told.append("beside others")

    latencies = trials.latencies
    monkeypatch.setattr(processes.Quiet, "alone", watched)
    monkeypatch.setattr(trials, "latencies", lambda *each: told.append("timed") or latencies(*each))
    pauses = []
    monkeypatch.setattr(processes.Quiet, "pause", lambda quiet: pauses.append(1))
    study, _ = worked("quick", handful, trials=1, epochs=2, objective="accuracy,latency")
    assert told == ["alone", "timed", "beside others"]
    assert len(pauses) == 2
    assert 0 < studies.trials(study)[0].values[1] < 1


def test_the_same_seed_proposes_the_same_points(handful, cpu):
    one, two = (worked(name, handful, trials=2)[0] for name in ("same-1", "same-2"))
    assert [trial.params for trial in studies.trials(one)] == [trial.params for trial in studies.trials(two)]
    assert [trial.values for trial in studies.trials(one)] == [trial.values for trial in studies.trials(two)]


def test_trainings_leave_no_graphs_behind(handful, cpu):
    """They do if Keras sums gradients by another method than the one that `fmnist.engine.tensorflow` replaces."""
    from tensorflow.python.framework.func_graph import FuncGraph

    def graphs_after(name):
        worked(name, handful, trials=2)
        gc.unfreeze()
        gc.collect()
        return sum(isinstance(each, FuncGraph) for each in gc.get_objects())

    assert graphs_after("graphs-1") >= graphs_after("graphs-2")


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "grid"])
def test_workers_never_draw_a_point_twice(sampler):
    """Of a space of 12 points, two workers by turns draw each once."""
    fixed = "layers=1, taper=1.0, activation=relu, learning_rate=0.001, augment=none, optimizer=adam"
    settings = Tune(model="mlp", sampler=sampler, trials=12, space=f"{fixed}, width=64|96|128, batch_size=32..256")
    search = trials.plan(settings)
    name = f"distinct-{sampler}"
    studies.find_or_create(name, AUTO, ("accuracy",), {})
    pair = [studies.find(name, AUTO) for _ in range(2)]
    for worker, study in enumerate(pair):
        study.sampler = sampling.sampler(settings, search.space, study, worker)
    for number in range(12):
        pair[number % 2].optimize(lambda trial: len(sampling.suggest(trial, search.space)), n_trials=1)
    points = [(each.params["width"], each.params["batch_size"]) for each in studies.trials(pair[0])]
    assert len(set(points)) == 12


@pytest.mark.parametrize("pruner", ["hyperband", "median", "none"])
def test_every_pruner_works(pruner, handful, cpu, quick_fit):
    study, _ = worked(f"by-{pruner}", handful, trials=2, epochs=2, pruner=pruner)
    assert len(studies.counted(study)) == 2
    made = sampling.pruner(Tune(pruner=pruner), 2)
    assert type(made).__name__.lower() == {"none": "nop"}.get(pruner, pruner) + "pruner"


def test_a_worker_never_has_the_test_split(monkeypatch, cpu):
    from entry_points.workers import trial

    given = []
    monkeypatch.setattr(trials, "work", lambda task, search, splits, *_: given.append(splits))
    monkeypatch.setattr(training, "settle", lambda plan, _: plan)  # this process computes already
    settings = Tune(**QUICK, device="cpu")
    trial.work(json.dumps(vars(trials.Task(texts(settings), "s", 1, 0, "", 1))))
    assert (len(given[0].train) > 0, len(given[0].test)) == (True, 0)


def test_a_study_without_variety_still_has_its_plots():
    study = studies.find_or_create("flat", AUTO, ("accuracy",), {"identity": {"objective": "accuracy"}})
    assert figures.images(study) == {}
    study.add_trial(optuna.create_trial(values=[0.5], params={}, distributions={}))
    assert set(figures.images(study)) == {"optimization_history"}
    assert "optimization_history" in figures.page(study)


def test_more_trials_than_points_are_refused():
    fixed = (
        "layers=1, taper=1.0, activation=relu, learning_rate=0.001, augment=none, optimizer=adam, batch_size=64"
    )
    with pytest.raises(FmnistError, match="trials: expected at most the 2 points of the space, received 3"):
        trials.plan(Tune(model="mlp", trials=3, space=f"{fixed}, width=64|96"))


@pytest.mark.parametrize(
    ("changes", "lost", "count"),
    [
        ({"backend": "jax"}, (), 3),
        ({"backend": "jax"}, (0,), 1),  # it was tried, and its process died
        ({"backend": "jax"}, (2,), 2),
        ({"backend": "jax", "workers": 2}, (), 1),
        ({"backend": "jax", "objective": "accuracy,latency"}, (), 1),
        ({}, (), 1),
    ],
)
def test_the_seeds_of_one_configuration_are_trained_at_once_where_nothing_is_against_it(changes, lost, count):
    search = trials.plan(parse(Tune, {key: str(value) for key, value in (QUICK | changes).items()}))
    study = optuna.create_study()
    assert trials._num_at_once(study, search) == 1
    for index, candidate in enumerate((4, 4, 4, trials.DEFAULT)):
        history = {"retry_history": [0]} if index in lost else {}
        attributes = {"candidate": candidate, "seed": index}
        study.add_trial(
            optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attributes, system_attrs=history)
        )
    assert trials._num_at_once(study, search) == count
