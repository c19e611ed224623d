"""Leads a search: keeps workers at a study until it has its trials, and says how it goes."""

import dataclasses
import math
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from time import perf_counter

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist.errors import FmnistError
from fmnist.tuning import studies
from fmnist.tuning.trials import Search, Task
from fmnist.tuning.workers import Worker

POLL_SECONDS, LOOK_SECONDS = 0.3, 5.0
MAX_DEATHS = 3
LAST_WORDS_SECONDS = 5.0


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
    num_workers = int(task.settings["workers"])
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
