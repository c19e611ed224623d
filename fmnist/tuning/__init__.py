"""Leads a search for hyperparameters: keeps workers at a study, and finds out what its best trials are worth.

The best configurations, and the model's own recipe, are trained again on fresh seeds, as trials of a second
study that workers of the same kind work on; the winner is chosen among them by its validation mean, and only
then tested.
"""

import dataclasses
import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist.data import Splits
from fmnist.engine.result import PREDICT_BATCH
from fmnist.errors import FmnistError
from fmnist.evaluation import Evaluation, evaluate
from fmnist.settings import Train, Tune
from fmnist.spread import Spread, spread
from fmnist.training import Plan
from fmnist.tuning import studies
from fmnist.tuning.trials import DEFAULT, Search, Task, plan_at
from fmnist.tuning.workers import Worker

POLL_SECONDS, LOOK_SECONDS = 0.3, 5.0
MAX_DEATHS = 3
LAST_WORDS_SECONDS = 5.0


@dataclass(frozen=True)
class Candidate:
    """A configuration that was trained again on fresh seeds."""

    trial: int
    """Its number in the search, or DEFAULT."""
    plan: Plan
    search_score: float | None
    """Validation accuracy in the search."""
    again: tuple[FrozenTrial, ...]
    """Its trainings on fresh seeds."""
    validation: Spread | None
    """Of their validation accuracies."""

    @property
    def drop(self) -> float | None:
        """How much of the search's score was luck: what it lost on fresh seeds (the winner's curse)."""
        if self.search_score is None or self.validation is None:
            return None
        return self.search_score - self.validation.mean

    def __str__(self) -> str:
        return "default recipe" if self.trial == DEFAULT else f"trial {self.trial}"


def new_name(search: Search) -> str:
    """A name for a study that nobody named."""
    return f"{search.base.model.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def search(
    study: optuna.Study,
    task: Task,
    start: Callable[[Task], Worker],
    on_trial: Callable[[FrozenTrial], None],
) -> dict[str, float]:
    """Keeps workers at a study until it has its trials; whatever ends it, they end too, and no trial runs on.

    Gives how long that took, with the start of the workers, and the trials an hour.

    Args:
        study: What is worked on.
        task: What its workers are told.
        start: Starts a worker.
        on_trial: Is told of each trial that has ended.

    Raises:
        FmnistError: If three trials in a row end with the same error, or workers can't work.
    """
    num_workers = task.settings["workers"]
    workers: dict[int, Worker] = {}
    told = {trial.number for trial in studies.ended(study)}
    storage = task.settings["storage"]
    deaths, last_look, begin = 0, -math.inf, perf_counter()
    try:
        while True:
            if perf_counter() - last_look > LOOK_SECONDS:
                studies.sweep_other_machines(study)
                last_look = perf_counter()
            ended = {index: worker.error() for index, worker in workers.items()}
            studies.sweep(study, storage)
            deaths = 0 if _tell(study, told, on_trial) else deaths
            error = studies.repeated_error(study, task.skipped)
            if error:
                raise FmnistError(f"{studies.SAME_ERRORS} trials in a row failed with the same error: {error}")
            left, running = studies.remaining(study, task.total), studies.trials(study, TrialState.RUNNING)
            if not left and not running:
                seconds = perf_counter() - begin
                give_up = begin + seconds + LAST_WORDS_SECONDS
                while any(worker.error() is None for worker in workers.values()) and perf_counter() < give_up:
                    time.sleep(POLL_SECONDS)  # they end by themselves
                num_trials = len(studies.ended(study)) - task.skipped
                took = {"search_seconds": seconds, "trials_per_hour": 3600 * num_trials / seconds}
                return took if num_trials else {}
            for index, message in ended.items():
                if message is not None:
                    del workers[index]
                    deaths += bool(message)
                if message and deaths >= MAX_DEATHS:
                    raise FmnistError(f"workers end without a trial: {message}")
            idle = max(len(workers) - len(running), 0)
            for index in [each for each in range(num_workers) if each not in workers][: max(left - idle, 0)]:
                workers[index] = start(dataclasses.replace(task, index=index))
            time.sleep(POLL_SECONDS)
    finally:
        for worker in workers.values():
            worker.stop()
        studies.sweep(study, storage, interrupted=task.command)
        _tell(study, told, on_trial)


def _tell(study: optuna.Study, told: set[int], on_trial: Callable[[FrozenTrial], None]) -> bool:
    """Tells of the trials that have ended since; gives whether there are any."""
    new = [trial for trial in studies.ended(study) if trial.number not in told]
    for trial in new:
        told.add(trial.number)
        on_trial(trial)
    return bool(new)


def best(study: optuna.Study, search: Search) -> list[FrozenTrial]:
    """The most accurate trials: of all, or with several objectives, of the Pareto front.

    Two that come to the same training count once.
    """
    among = studies.trials(study, TrialState.COMPLETE) if len(study.directions) == 1 else study.best_trials
    found: dict[str, FrozenTrial] = {}
    for trial in sorted(among, key=lambda trial: (-_accuracy(study, trial), trial.number)):
        found.setdefault(str(plan_at(search.base, trial.params)), trial)
    return list(found.values())[: search.settings.best]


def best_so_far(study: optuna.Study) -> dict[str, float]:
    """The best value of each objective, and how many trials there are on a Pareto front."""
    done = studies.trials(study, TrialState.COMPLETE)
    if not done:
        return {}
    names = study.user_attrs["identity"]["objective"].split(",")
    found = {
        name: (max if studies.DIRECTIONS[name] == "MAXIMIZE" else min)(trial.values[place] for trial in done)
        for place, name in enumerate(names)
    }
    return found if len(names) == 1 else found | {"front_size": len(study.best_trials)}


def progress_text(study: optuna.Study, trial: FrozenTrial) -> str:
    """What became of a trial, and the best so far, in a line."""
    found = ", ".join(f"{name} {value:.4g}" for name, value in best_so_far(study).items())
    outcome = {
        TrialState.COMPLETE: lambda: ", ".join(f"{value:.4g}" for value in trial.values),
        TrialState.PRUNED: lambda: f"pruned after epoch {trial.last_step}",
    }.get(trial.state, lambda: f"failed: {trial.user_attrs.get('error', studies.LOST)}")()
    return f"#{trial.number}: {outcome}" + (f"  (best: {found})" if found else "")


def again(study: optuna.Study, search: Search) -> optuna.Study:
    """The study of the trainings on fresh seeds that belongs to a search."""
    name, storage = f"{study.study_name}.again", search.settings.storage
    identity = study.user_attrs["identity"] | {"objective": "accuracy"}
    return studies.find_or_create(name, storage, ("accuracy",), {"identity": identity, "points": "given"})


def ask_again(study: optuna.Study, again: optuna.Study, search: Search) -> int:
    """Queues the best configurations, and the model's own recipe, on fresh seeds; gives how many there are.

    What an earlier command has queued is not queued again, unless it failed.
    """
    states = [state for state in TrialState if state != TrialState.FAIL]
    there = {(each.user_attrs["candidate"], each.user_attrs["seed"]) for each in studies.trials(again, *states)}
    chosen: dict[int, Mapping[str, Any]] = {trial.number: trial.params for trial in best(study, search)}
    for number, point in {**chosen, DEFAULT: {}}.items():
        for seed in fresh_seeds(search.settings):
            if (number, seed) not in there:
                again.enqueue_trial(dict(point), user_attrs={"candidate": number, "seed": seed})
    return len(studies.counted(again)) + len(studies.trials(again, TrialState.WAITING))


def fresh_seeds(settings: Tune) -> range:
    """The seeds of the trainings that choose the winner; no trial of the search has had them."""
    return range(settings.seed + 1, settings.seed + 1 + settings.repeats)


def candidates(study: optuna.Study, again: optuna.Study, search: Search) -> list[Candidate]:
    """The configurations that were trained again, best mean validation accuracy first, the recipe last.

    Raises:
        FmnistError: If there is none but the recipe.
    """
    seeds = fresh_seeds(search.settings)
    done = [each for each in studies.trials(again, TrialState.COMPLETE) if each.user_attrs["seed"] in seeds]
    found: list[Candidate] = []
    for trial in [*best(study, search), None]:
        number = DEFAULT if trial is None else trial.number
        own = tuple(each for each in done if each.user_attrs["candidate"] == number)
        plan = plan_at(search.base, trial.params) if trial else search.base
        settled = own[0].user_attrs["precision"] if own else plan.precision
        found.append(
            Candidate(
                trial=number,
                plan=dataclasses.replace(plan, precision=settled),
                search_score=_accuracy(study, trial) if trial else None,
                again=own,
                validation=spread([each.values[0] for each in own]) if own else None,
            )
        )
    most = max(len(each.again) for each in found)  # one that fails on a seed is no winner while another doesn't
    mean = {each.trial: each.validation.mean if each.validation else -math.inf for each in found}
    found.sort(key=lambda each: (each.trial == DEFAULT, len(each.again) < most, -mean[each.trial]))
    if found[0].trial == DEFAULT or not found[0].validation:
        raise FmnistError(
            f"study: no trial of {study.study_name} came to its end; its run's table says with what error"
        )
    return found


def test(candidate: Candidate, splits: Splits, load_model: Callable[[str], Any]) -> list[Evaluation]:
    """Reads the test split, once for each of a candidate's models."""
    images = splits.test.images.astype(np.float32)
    models = [load_model(each.user_attrs["model_uri"]) for each in candidate.again]
    return [
        evaluate(model.predict(images, batch_size=PREDICT_BATCH, verbose=0), splits.test.labels)
        for model in models
    ]


def best_model(winner: Candidate, tests: list[Evaluation], splits: Splits) -> dict[str, Any]:
    """Of a winner's models the one that validates best, as what is registered."""
    trial, test = max(zip(winner.again, tests, strict=True), key=lambda pair: pair[0].values[0])
    return {
        "model_uri": trial.user_attrs["model_uri"],
        "model": winner.plan.model.name,
        "dataset": splits.manifest["dataset"],
        "dataset_digest": splits.manifest["digest"],
        "test_accuracy": test.accuracy,
        "validation_accuracy": trial.values[0],
        "seed": trial.user_attrs["seed"],
    }


def _accuracy(study: optuna.Study, trial: FrozenTrial) -> float:
    objectives: list[str] = study.user_attrs["identity"]["objective"].split(",")
    return float(trial.values[objectives.index("accuracy")])


def result(
    study: optuna.Study, settings: Tune, found: list[Candidate], tests: Mapping[int, list[Evaluation]]
) -> dict[str, Any]:
    """What the search came to, as a record.

    Args:
        study: The search.
        settings: What was asked for.
        found: Of `candidates`.
        tests: Of those that were tested, the evaluations of their models.
    """
    states = [trial.state for trial in studies.counted(study)]
    gained = gain(found, tests)
    return {
        "study": study.study_name,
        **{f"num_{state.name.lower()}": states.count(state) for state in TrialState if state.is_finished()},
        "gain": gained and dataclasses.asdict(gained),
        "candidates": [
            {
                "candidate": str(each),
                "hyperparameters": each.plan.hyperparameters,
                **dataclasses.asdict(each.plan.recipe),
                "augment": "+".join(each.plan.augment) or "none",
                "search_accuracy": each.search_score,
                "validation_accuracy": each.validation and dataclasses.asdict(each.validation),
                "drop": each.drop,
                "test_accuracy": _tested(tests.get(each.trial)),
                "command": command(each.plan, settings),
            }
            for each in found
        ],
    }


def markdown(
    study: optuna.Study, settings: Tune, found: list[Candidate], tests: Mapping[int, list[Evaluation]]
) -> str:
    """The same for people: what was found beside the model's own recipe, and how much of it was luck."""
    winner = found[0]
    lines = [
        f"Study **{study.study_name}**: {len(studies.counted(study))} trials of {winner.plan.model.name}, "
        f"{winner.plan.recipe.epochs} epochs each. The search saw the training and the validation split. Its best "
        "and the model's own recipe were then trained on fresh seeds; the winner is the best of them by the mean "
        "of its validation accuracies, and only what is shown with a test accuracy was tested.",
        "",
        "| | search | validation on fresh seeds: mean (95 % interval, n) | drop | test: mean (min-max, n) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in found:
        again = each.validation
        test = spread([one.accuracy for one in tests[each.trial]]) if tests.get(each.trial) else None
        texts = (
            f"**{each}**" if each is winner else str(each),
            "" if each.search_score is None else f"{each.search_score:.2%}",
            _interval(again),
            "" if each.drop is None else f"{100 * each.drop:+.2f} points",
            f"{test.mean:.2%} ({test.min:.2%}-{test.max:.2%}, {test.n})" if test else "not tested",
        )
        lines.append(f"| {' | '.join(texts)} |")
    gained = gain(found, tests)
    if gained and gained.ci95_low is not None and gained.ci95_high is not None:
        mean, low, high = (100 * each for each in (gained.mean, gained.ci95_low, gained.ci95_high))
        beats = "beats" if low > 0 else "is not shown to beat"
        lines += [
            "",
            f"On the test split the winner {beats} the default recipe: {mean:+.2f} points (95 % interval "
            f"{low:+.2f} to {high:+.2f}, {gained.n} seeds in pairs). The validation figures chose the winner: "
            "they flatter it.",
        ]
    lines += ["", "Train them again with:", "", *(f"- {each}: `{command(each.plan, settings)}`" for each in found)]
    return "\n".join(lines) + "\n"


def gain(found: list[Candidate], tests: Mapping[int, list[Evaluation]]) -> Spread | None:
    """How much more test accuracy the winner has than the model's own recipe, seed by seed.

    Not of validation accuracies: the winner was chosen by them.
    """
    pair = [
        {each.user_attrs["seed"]: test.accuracy for each, test in zip(one.again, tests[one.trial], strict=True)}
        for one in (found[0], found[-1])
    ]
    seeds = pair[0].keys() & pair[1].keys()
    return spread([pair[0][seed] - pair[1][seed] for seed in sorted(seeds)]) if seeds else None


def command(plan: Plan, settings: Tune) -> str:
    """The command that trains by a plan."""
    hyper = ";".join(
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in plan.hyperparameters.items()
    )
    values = {
        "model": plan.model.name,
        "hyper": f'"{hyper}"',
        **dataclasses.asdict(plan.recipe),
        "augment": "+".join(plan.augment) or "none",
        "precision": plan.precision,
        "backend": plan.backend,
        "dataset": settings.dataset,
        "validation": settings.validation,
    }
    usual = Train()
    pairs = [f"-P {name}={value}" for name, value in values.items() if value != getattr(usual, name)]
    return " ".join(["mlflow run . -e train", *pairs])


def _interval(figures: Spread | None) -> str:
    if figures is None:
        return "failed"
    known = figures.ci95_low is not None and figures.ci95_high is not None
    between = f"{figures.ci95_low:.2%}-{figures.ci95_high:.2%}, " if known else ""
    return f"{figures.mean:.2%} ({between}{figures.n})"


def _tested(evaluations: list[Evaluation] | None) -> dict[str, float] | None:
    return dataclasses.asdict(spread([each.accuracy for each in evaluations])) if evaluations else None
