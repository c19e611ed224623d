"""Leads a search: keeps workers at its studies, says how it goes, and finds out what the best are worth."""

import dataclasses
import math
import os
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import Any, Protocol, Self

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from fmnist import device
from fmnist.data import Splits
from fmnist.errors import FmnistError
from fmnist.evaluation import Evaluation
from fmnist.options import texts
from fmnist.tuning import candidates, studies, trials, verdict, workers
from fmnist.tuning.trials import Search, Task
from fmnist.tuning.workers import Worker

POLL_SECONDS, LOOK_SECONDS = 0.3, 5.0
MAX_DEATHS = 3
LAST_WORDS_SECONDS = 5.0


def new_name(search: Search) -> str:
    """A name for a study that nobody named."""
    return f"{search.base.model.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Tracking(Protocol):
    """What is told of a search; `fmnist.tracking.search` is one."""

    def study_run(self, run_id: str, *, leads: bool) -> AbstractContextManager[str]: ...
    def end_lost(self, run_id: str) -> None: ...
    def log_best(self, figures: Mapping[str, float], step: int) -> None: ...
    def log_dataset(self, splits: Splits) -> None: ...
    def log_search(self, study: optuna.Study, seconds: Mapping[str, float]) -> None: ...
    def log_tested(self, run_id: str, model_uri: str, test: Evaluation) -> None: ...
    def log_test_pictures(
        self, run_id: str, test: Evaluation, probabilities: NDArray[np.float32], splits: Splits
    ) -> None: ...
    def log_tuned(self, result: dict[str, Any], text: str) -> None: ...
    def load_model(self, model_uri: str) -> Any: ...
    def register(self, result: dict[str, Any], registered_model: str, **more_tags: Any) -> str | None: ...


class Progress(Protocol):
    """What shows the trials as they end."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: Any) -> None: ...
    def step(self, text: str) -> None: ...


@dataclass(frozen=True)
class Command:
    """One command at a search: what it searches, and the callables that tie it to processes and people."""

    search: Search
    splits: Splits
    study: str
    """By name."""
    device: str
    """That tests the winner, as `fmnist.device.select` takes it."""
    start: Callable[[Task], Worker]
    tracking: Tracking
    progress: Callable[[str, int], Progress]
    """Of a name and a number of trials."""


def check(search: Search, splits: Splits, name: str) -> None:
    """Checks a search against the data, and against the study of its name, if there is one.

    Raises:
        FmnistError: If a batch could be too large, or the study is of another search.
    """
    trials.check_fits(search, splits)
    study = studies.find(name, search.settings.storage)
    if study:
        trials.check_same(study, search, splits)


def tune(command: Command, own_run: str) -> dict[str, Any]:
    """Searches, trains the best again on fresh seeds, tests the winner, and registers it; gives the result.

    If another process leads the study, this one only helps to search.

    Args:
        command: What is searched, and how.
        own_run: The command's run, which is the study's if the command makes the study.
    """
    search, tracking = command.search, command.tracking
    settings = search.settings
    attributes = {"identity": search.identity(command.splits), "run_id": own_run}
    study = studies.find_or_create(command.study, settings.storage, search.objectives, attributes)
    trials.check_same(study, search, command.splits)  # it may have come into being meanwhile
    watch = shlex.join(["optuna-dashboard", studies.location(study.study_name, settings.storage)])
    print(
        f"study {study.study_name}: watch it with {watch}; go on with it by -P study={study.study_name}",
        file=sys.stderr,
    )
    with (
        studies.Lead(study.study_name, settings.storage) as lead,
        tracking.study_run(study.user_attrs["run_id"], leads=lead.leads) as run_id,
    ):

        def log_best() -> None:
            tracking.log_best(best_so_far(study), len(studies.ended(study)))

        figures = _work_on(command, lead, study, settings.trials, run_id, log_best if lead.leads else None)
        if not lead.leads:
            return {"run_id": own_run, "study": study.study_name, "leads": False}
        tracking.log_dataset(command.splits)
        tracking.log_search(study, figures)
        fresh = candidates.fresh_study(study, search)
        lead.keep()
        _work_on(command, lead, fresh, candidates.queue_fresh_seeds(study, fresh, search), run_id, None)
        found = candidates.candidates(study, fresh, search)
        device.select(command.device, settings.backend)
        tested = (found[0], found[-1])

        def on_tested(trial: FrozenTrial, test: Evaluation, probabilities: NDArray[np.float32]) -> None:
            trial_run = trial.user_attrs["run_id"]
            tracking.log_tested(trial_run, trial.user_attrs["model_uri"], test)
            if trial is found[0].best_training:
                tracking.log_test_pictures(trial_run, test, probabilities, command.splits)

        tests = {
            each.trial: candidates.test(each, command.splits, tracking.load_model, on_tested) for each in tested
        }
        result = verdict.result(study, settings, found, tests)
        lead.keep()
        tracking.log_tuned(result, verdict.markdown(study, settings, found, tests))
        best = candidates.best_model(found[0], tests[found[0].trial], command.splits)
        registered = tracking.register(best, settings.registered_model, study=study.study_name)
    return {"run_id": run_id, "registered": registered, **result}


def _work_on(
    command: Command,
    lead: studies.Lead,
    study: optuna.Study,
    total: int,
    run_id: str,
    log_best: Callable[[], None] | None,
) -> dict[str, float]:
    """Has workers run the trials of a study, and tells of each; gives what `keep_at_it` does."""
    settings, tracking = command.search.settings, command.tracking
    for lost in studies.sweep(study, settings.storage):
        tracking.end_lost(lost.user_attrs.get("run_id", ""))

    def on_trial(trial: FrozenTrial) -> None:
        tracking.end_lost(trial.user_attrs.get("run_id", ""))
        if log_best:
            log_best()
        progress.step(progress_text(study, trial))

    task = Task(
        settings=texts(settings),
        study=study.study_name,
        total=total,
        skipped=len(studies.ended(study)),
        run_id=run_id,
        num_threads=workers.num_threads(settings),
        command=secrets.token_hex(8),
        leader=os.getpid() if settings.launcher == "local" else None,
    )
    with command.progress(study.study_name, studies.remaining(study, total)) as progress:
        return keep_at_it(study, task, command.start, on_trial, lead.keep)


def keep_at_it(
    study: optuna.Study,
    task: Task,
    start: Callable[[Task], Worker],
    on_trial: Callable[[FrozenTrial], None],
    keep_lead: Callable[[], None],
) -> dict[str, float]:
    """Keeps workers at a study until it has its trials; whatever ends it, they end too, and no trial runs on.

    Gives how long that took, with the start of the workers, and the trials an hour.

    Args:
        study: What is worked on.
        task: What its workers are told.
        start: Starts a worker.
        on_trial: Is told of each trial that has ended.
        keep_lead: Raises if another process leads the study by now; waits for a storage that is away.

    Raises:
        FmnistError: If three trials in a row end with the same error, or workers can't work.
    """
    num_workers = int(task.settings["workers"])
    workers: dict[int, Worker] = {}
    told = {trial.number for trial in studies.ended(study)}
    storage = task.settings["storage"]
    deaths, last_look, begin = 0, -math.inf, perf_counter()

    def look() -> dict[str, float] | None:
        """Sees to the workers; gives the figures if all is done."""
        nonlocal deaths, last_look
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
        return None

    try:
        while True:
            keep_lead()
            with suppress(
                optuna.exceptions.StorageInternalError
            ):  # the database is away; `keep_lead` waits for it
                figures = look()
                if figures is not None:
                    return figures
            time.sleep(POLL_SECONDS)
    finally:
        for worker in workers.values():
            worker.stop()
        with suppress(optuna.exceptions.StorageInternalError):  # then the next command sweeps
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
        name: (max if studies.DIRECTIONS[name] == "MAXIMIZE" else min)(trial.values[index] for trial in done)
        for index, name in enumerate(names)
    }
    return found if len(names) == 1 else found | {"front_size": len(study.best_trials)}


def progress_text(study: optuna.Study, trial: FrozenTrial) -> str:
    """What became of a trial, and the best so far, in a line."""
    found = ", ".join(f"{name} {value:.4g}" for name, value in best_so_far(study).items())
    outcome = {
        TrialState.COMPLETE: lambda: ", ".join(f"{value:.4g}" for value in trial.values),
        TrialState.PRUNED: lambda: f"pruned after epoch {trial.last_step}",
    }.get(trial.state, lambda: f"failed: {studies.error(study, trial)}")()
    return f"#{trial.number}: {outcome}" + (f"  (best: {found})" if found else "")
