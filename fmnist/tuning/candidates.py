"""Finds out what the best trials of a search are worth.

The best configurations, and the model's own recipe, are trained again on fresh seeds, as trials of a second
study that workers of the same kind work on; the winner is chosen among them by its validation mean, and only
then tested.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from fmnist.data import Splits
from fmnist.engine.result import PREDICT_BATCH
from fmnist.errors import FmnistError
from fmnist.evaluation import Evaluation, evaluate
from fmnist.settings import Tune
from fmnist.statistics import Spread, spread
from fmnist.training import Plan
from fmnist.tuning import studies
from fmnist.tuning.trials import DEFAULT, Search, plan_at


@dataclass(frozen=True)
class Candidate:
    """A configuration that was trained again on fresh seeds."""

    trial: int
    """Its number in the search, or DEFAULT."""
    plan: Plan
    """As in the search; the device settled nothing in it."""
    search_score: float | None
    """Validation accuracy in the search."""
    trainings: tuple[FrozenTrial, ...]
    """On fresh seeds."""
    validation: Spread | None
    """Of their validation accuracies."""

    @property
    def drop(self) -> float | None:
        """How much of the search's score was luck: what it lost on fresh seeds (the winner's curse)."""
        if self.search_score is None or self.validation is None:
            return None
        return self.search_score - self.validation.mean

    @property
    def best_training(self) -> FrozenTrial:
        """Of those on fresh seeds the one that validates best: its model is registered, its command printed."""
        return max(self.trainings, key=_value)

    def __str__(self) -> str:
        return "default recipe" if self.trial == DEFAULT else f"trial {self.trial}"


def best(study: optuna.Study, search: Search) -> list[FrozenTrial]:
    """The most accurate trials: of all, or with several objectives, of the Pareto front.

    Two that come to the same training count once.
    """
    among = studies.trials(study, TrialState.COMPLETE) if len(study.directions) == 1 else study.best_trials
    found: dict[str, FrozenTrial] = {}
    for trial in sorted(among, key=lambda trial: (-_accuracy(study, trial), trial.number)):
        found.setdefault(str(plan_at(search.base, trial.params)), trial)
    return list(found.values())[: search.settings.best]


def fresh_study(study: optuna.Study, search: Search) -> optuna.Study:
    """The study of the trainings on fresh seeds that belongs to a search."""
    name, storage = f"{study.study_name}.fresh", search.settings.storage
    identity = study.user_attrs["identity"] | {"objective": "accuracy"}
    return studies.find_or_create(name, storage, ("accuracy",), {"identity": identity, "points": "given"})


def queue_fresh_seeds(study: optuna.Study, fresh: optuna.Study, search: Search) -> int:
    """Queues the best configurations, and the model's own recipe, on fresh seeds; gives how many there are.

    What an earlier command has queued is not queued again, unless it failed.
    """
    states = [state for state in TrialState if state != TrialState.FAIL]
    there = {(each.user_attrs["candidate"], each.user_attrs["seed"]) for each in studies.trials(fresh, *states)}
    chosen: dict[int, Mapping[str, Any]] = {trial.number: trial.params for trial in best(study, search)}
    for number, point in {**chosen, DEFAULT: {}}.items():
        for seed in fresh_seeds(search.settings):
            if (number, seed) not in there:
                fresh.enqueue_trial(dict(point), user_attrs={"candidate": number, "seed": seed})
    return len(studies.counted(fresh)) + len(studies.trials(fresh, TrialState.WAITING))


def fresh_seeds(settings: Tune) -> range:
    """The seeds of the trainings that choose the winner; no trial of the search has had them."""
    return range(settings.seed + 1, settings.seed + 1 + settings.repeats)


def candidates(study: optuna.Study, fresh: optuna.Study, search: Search) -> list[Candidate]:
    """The configurations that were trained again, best mean validation accuracy first, the recipe last.

    Raises:
        FmnistError: If there is none but the recipe.
    """
    seeds = fresh_seeds(search.settings)
    done = [each for each in studies.trials(fresh, TrialState.COMPLETE) if each.user_attrs["seed"] in seeds]
    found: list[Candidate] = []
    for trial in [*best(study, search), None]:
        number = DEFAULT if trial is None else trial.number
        own = tuple(each for each in done if each.user_attrs["candidate"] == number)
        found.append(
            Candidate(
                trial=number,
                plan=plan_at(search.base, trial.params) if trial else search.base,
                search_score=_accuracy(study, trial) if trial else None,
                trainings=own,
                validation=spread([*map(_value, own)]) if own else None,
            )
        )
    most = max(
        len(each.trainings) for each in found
    )  # one that fails on a seed is no winner while another doesn't
    mean = {each.trial: each.validation.mean if each.validation else -math.inf for each in found}
    found.sort(key=lambda each: (each.trial == DEFAULT, len(each.trainings) < most, -mean[each.trial]))
    if found[0].trial == DEFAULT or not found[0].validation:
        raise FmnistError(
            f"study: no trial of {study.study_name} came to its end; its run's table says with what error"
        )
    return found


def test(
    candidate: Candidate,
    splits: Splits,
    load_model: Callable[[str], Any],
    on_tested: Callable[[FrozenTrial, Evaluation, NDArray[np.float32]], None],
) -> list[Evaluation]:
    """Reads the test split, once for each of a candidate's models; tells of each with its probabilities."""
    images = splits.test.images.astype(np.float32)
    found = []
    for each in candidate.trainings:
        model = load_model(each.user_attrs["model_uri"])
        probabilities = model.predict(images, batch_size=PREDICT_BATCH, verbose=0)
        found.append(evaluate(probabilities, splits.test.labels))
        on_tested(each, found[-1], probabilities)
    return found


def best_model(winner: Candidate, tests: list[Evaluation], splits: Splits) -> dict[str, Any]:
    """Of a winner's models the one that validates best, as what is registered."""
    trial = winner.best_training
    test = tests[winner.trainings.index(trial)]
    settled = trial.user_attrs["settled"]
    return {
        "run_id": trial.user_attrs["run_id"],
        "together": {
            "repeats": len(tests),
            "seeds": [each.user_attrs["seed"] for each in winner.trainings],
            "test_accuracy": dataclasses.asdict(spread([each.accuracy for each in tests])),
        },
        "recipe": winner.plan.in_words,
        "num_parameters": trial.user_attrs.get("num_parameters"),
        "device": f"{settled['device']}, {settled['num_threads']} threads",
        "model_uri": trial.user_attrs["model_uri"],
        "model": winner.plan.model.name,
        "dataset": splits.manifest["dataset"],
        "dataset_digest": splits.manifest["digest"],
        "test_accuracy": test.accuracy,
        "validation_accuracy": _value(trial),
        "seed": trial.user_attrs["seed"],
    }


def _value(training: FrozenTrial) -> float:
    return float(training.values[0])


def _accuracy(study: optuna.Study, trial: FrozenTrial) -> float:
    objectives: list[str] = study.user_attrs["identity"]["objective"].split(",")
    return float(trial.values[objectives.index("accuracy")])
