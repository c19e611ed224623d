"""What the best of a search are worth: on fresh seeds, in the verdict, and as a command that can be typed."""

import dataclasses
import shlex
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from searches import AUTO, QUICK, made_study

from fmnist import machine, models, training
from fmnist.options import parse
from fmnist.settings import Train, Tune, Validation
from fmnist.statistics import spread
from fmnist.tuning import candidates, sampling, studies, trials, verdict


def typed(command):
    """The settings that a command gives `train`, and the words before `mlflow`."""
    words = shlex.split(command)
    start = words.index("mlflow")
    assert words[start : start + 5] == ["mlflow", "run", ".", "-e", "train"]
    assert words[start + 5 :: 2] == ["-P"] * ((len(words) - start - 5) // 2)
    return parse(Train, dict(word.split("=", 1) for word in words[start + 6 :: 2])), words[:start]


def test_a_configuration_that_fails_on_a_fresh_seed_is_trained_on_it_again_and_else_is_no_winner():
    settings = Tune(**(QUICK | {"space": "layers=1, activation=relu, augment=none"}), best=2, repeats=2)
    search = trials.plan(settings)
    study = made_study("search", TrialState.COMPLETE, TrialState.COMPLETE)
    fresh = made_study("search.fresh")

    def train(fails):
        asked = candidates.queue_fresh_seeds(study, fresh, search)
        for waiting in studies.trials(fresh, TrialState.WAITING):
            candidate, seed = waiting.user_attrs["candidate"], waiting.user_attrs["seed"]
            trial = fresh.ask()
            if fails and (candidate, seed) == (1, 2):
                trial.set_user_attr("error", "E")
                fresh.tell(trial, state=TrialState.FAIL)
            else:
                fresh.tell(trial, 0.9 if candidate == 1 else 0.8)
        return asked

    assert train(fails=True) == 6
    assert [each.trial for each in candidates.candidates(study, fresh, search)] == [0, 1, trials.DEFAULT]
    assert train(fails=False) == 7
    assert [each.trial for each in candidates.candidates(study, fresh, search)] == [1, 0, trials.DEFAULT]


def test_two_trials_that_come_to_the_same_training_count_once_among_the_best():
    search = trials.plan(Tune(**QUICK, best=3))
    study = studies.find_or_create("twins", AUTO, ("accuracy",), {"identity": {"objective": "accuracy"}})
    for taper, width in ((0.25, 64), (0.5, 64), (0.5, 65)):  # of one layer, the taper says nothing
        point = {"width": width, "layers": 1, "taper": taper}
        kinds = {name: sampling.distribution(models.MODELS["mlp"].space[name]) for name in point}
        study.add_trial(optuna.create_trial(values=[0.5], params=point, distributions=kinds))
    assert [trial.number for trial in candidates.best(study, search)] == [0, 2]


@pytest.mark.parametrize("model", ["mlp", "mlp_dropout", "lenet"])
@pytest.mark.parametrize("num_threads", [1, machine.num_threads()])
@pytest.mark.parametrize("validation", [Validation(100), Validation(100, True), Validation(100, True, 3)], ids=str)
def test_the_command_of_a_candidate_says_all_that_decides_its_best_training(model, num_threads, validation):
    settings = Tune(model=model, data_dir="a folder; it's mine", validation=validation, seed=7, precision="auto")
    search = trials.plan(settings)
    study = optuna.create_study()
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    point = sampling.suggest(study.ask(), search.space)
    settled = trials.Settled("float32", 2, "cpu", num_threads)
    trainings = tuple(
        optuna.trial.create_trial(
            values=[value], user_attrs={"seed": seed, "settled": dataclasses.asdict(settled)}
        )
        for seed, value in ((8, 0.8), (9, 0.9), (10, 0.7))
    )
    candidate = candidates.Candidate(0, trials.plan_at(search.base, point), 0.9, trainings, None)
    given, before = typed(verdict.command(candidate, settings))
    wanted = dataclasses.replace(candidate.plan, seed=9, precision="float32", batch_parts=2)
    assert training.plan(given) == wanted
    seed = 3 if validation.seed == 3 else 7
    assert given.validation == (
        dataclasses.replace(validation, seed=seed) if validation.stratified else validation
    )
    assert (given.data_dir, given.device, given.patience) == ("a folder; it's mine", "cpu", 0)
    fewer = num_threads < machine.num_threads()
    assert before == (["taskset", "-c", "0"] if fewer else [])


@pytest.mark.parametrize(
    ("winner", "default", "told"),
    [
        (
            (0.92, 0.93, 0.93),
            (0.88, 0.89, 0.88),
            "On the test split the winner beats the default recipe: +4.33 points",
        ),
        (
            (0.89, 0.91),
            (0.89, 0.90),
            "On the test split the winner is not shown to beat the default recipe: +0.50",
        ),
        (
            (0.91,),
            (0.88,),
            "On the test split the winner has +3.00 points against the default recipe, on one seed: no verdict",
        ),
        (
            *((0.88, 0.89), (0.90, 0.905)),
            "On fresh seeds the default recipe has the higher mean validation accuracy: 90.25% (n=2), the winner",
        ),
        ((0.88,), (), "No seed has both the winner and the default recipe to compare."),
    ],
)
def test_a_search_says_whether_it_found_something_better_than_the_default_recipe(winner, default, told):
    base = trials.plan(Tune(**QUICK)).base

    def candidate(number, values):
        made = tuple(
            optuna.trial.create_trial(values=[value], user_attrs={"seed": seed})
            for seed, value in enumerate(values)
        )
        return candidates.Candidate(number, base, None, made, spread(values) if values else None)

    found = [candidate(0, winner), candidate(trials.DEFAULT, default)]
    tests = {each.trial: [SimpleNamespace(accuracy=one.value) for one in each.trainings] for each in found}
    assert verdict.sentence(found, tests).startswith(told)
