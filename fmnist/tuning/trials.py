"""Runs the trials of a study in a worker process: one after the other, or seeds of one configuration at once.

What is searched, and how a trial is drawn, trained, ended early and recorded.
"""

import dataclasses
import gc
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from time import perf_counter
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from fmnist import machine, processes, space, together, training
from fmnist.benchmark.cell import latencies
from fmnist.data import Splits
from fmnist.device import Device
from fmnist.errors import FmnistError
from fmnist.recipe import EXTRA_SPACE, NAMES, one_side_only, resolve
from fmnist.settings import Train, Tune, parse_augment
from fmnist.training import Epoch, Fitted, Plan
from fmnist.tuning import sampling, studies
from fmnist.tuning.meeting import Meeting

DEFAULT = -1  # the candidate that is the model's own recipe, among those that are numbers of trials
MAX_GRID = 10_000  # Optuna holds all of a grid's points
ASKED_FOR = ("candidate", "seed")  # what a training on a fresh seed was queued with


@dataclass(frozen=True)
class Search:
    """What is searched: all that must agree for a study to be gone on with."""

    settings: Tune
    base: Plan
    """What every trial shares."""
    space: dict[str, space.Dimension]
    objectives: tuple[str, ...]

    def identity(self, splits: Splits) -> dict[str, Any]:
        """As a study keeps it."""
        return {
            "model": self.base.model.name,
            "objective": ",".join(self.objectives),
            "space": ", ".join(f"{name}={dimension}" for name, dimension in self.space.items()),
            "epochs": self.base.recipe.epochs,
            "seed": self.base.seed,
            "backend": self.base.backend,
            "precision": self.base.precision,
            "dataset": splits.manifest["digest"],
        }


@dataclass(frozen=True)
class Task:
    """What a worker is told."""

    settings: dict[str, str]
    """Of the search, as texts."""
    study: str
    total: int
    """Trials that the study is to have."""
    skipped: int
    """Trials that had ended when the command began."""
    run_id: str
    """The run under which the trials are tracked."""
    num_threads: int
    """Of the CPU, for each worker."""
    index: int = 0
    """Of the worker among those of its command."""
    command: str = ""
    """Names the command that started the worker, among those of all machines."""
    leader: int | None = None
    """The process that the worker ends with; None if something else sees to that."""


@dataclass(frozen=True)
class Settled:
    """What the device of a trial decided; a training that has the same again is the same bit for bit."""

    precision: str
    batch_parts: int
    device: str
    """`cpu` or `gpu`."""
    num_threads: int
    """Of the CPU."""


class Tracking(Protocol):
    """What a worker tells of its trials; `fmnist.tracking.search` is one."""

    def trial_run(
        self, parent: str, name: str, tags: Mapping[str, Any], point: space.Point
    ) -> AbstractContextManager[str]: ...
    def log_plan(self, plan: Plan, device: Device) -> None: ...
    def log_epoch(self, epoch: Epoch) -> None: ...
    def log_trial(self, state: str, figures: Mapping[str, float], *, seeds_at_once: int) -> None: ...
    def log_after(self, run_id: str, figures: Mapping[str, float]) -> None: ...
    def log_model(self, trained: Fitted, splits: Splits, plan: Plan) -> str: ...


def plan(settings: Tune) -> Search:
    """What the settings ask for; imports nothing heavy beside Optuna.

    Raises:
        FmnistError: If the space isn't a narrowing of the model's, has smaller images, which the model doesn't
            take, or has too few or many points.
    """
    base = training.plan(
        Train(
            model=settings.model,
            epochs=settings.epochs,
            seed=settings.seed,
            backend=settings.backend,
            precision=settings.precision,
        )
    )
    narrowed = space.narrow(base.model.space, settings.space, more=EXTRA_SPACE)
    if "small_side" in narrowed and not base.model.any_side:
        raise one_side_only(base.model.name, "space", narrowed["small_side"])
    points = space.size(narrowed)
    if settings.sampler == "grid":
        points = math.prod(map(len, space.grid(narrowed).values()))
        if points > MAX_GRID:
            raise FmnistError(
                f"sampler=grid: expected at most {MAX_GRID:,} points, received {points:,}; fix some dimensions, "
                "for example -P space=optimizer=adam, augment=none"
            )
    if settings.trials > points:
        raise FmnistError(f"trials: expected at most the {points} points of the space, received {settings.trials}")
    return Search(settings, base, narrowed, settings.objective)


def check_fits(search: Search, splits: Splits) -> None:
    """Checks the space against the data.

    Raises:
        FmnistError: If a batch could be larger than the training split.
    """
    dimension = search.space["batch_size"]
    largest = max(dimension.values) if isinstance(dimension, space.Choice) else int(dimension.high)
    recipe = dataclasses.replace(search.base.recipe, batch_size=largest)
    training.check_fits(dataclasses.replace(search.base, recipe=recipe), splits)


def check_same(study: optuna.Study, search: Search, splits: Splits) -> None:
    """Checks that a study of the name that was given is of what was asked for.

    Raises:
        FmnistError: If it isn't.
    """
    wanted, found = search.identity(splits), study.user_attrs.get("identity", {})
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        what = "; ".join(f"{name} is {found.get(name)}, now {wanted[name]}" for name in differing)
        raise FmnistError(f"study: {study.study_name} is of another search: {what}. Type another -P study=")


def plan_at(base: Plan, point: space.Point) -> Plan:
    """The plan of a training at a point of the space."""
    recipe = {name: point[name] for name in NAMES if name in point and name not in base.hyperparameters}
    return dataclasses.replace(
        base,
        hyperparameters=base.model.at(point),
        recipe=resolve(base.recipe, **recipe),
        augment=parse_augment(point.get("augment", "none")),
    )


def work(
    task: Task, search: Search, splits: Splits, device: Device, tracking: Tracking, quiet: processes.Quiet
) -> None:
    """Runs trials of a study until it has all, three in a row have failed alike, or its leader is gone.

    Args:
        task: What this worker was told.
        search: What is searched, its base plan settled.
        splits: What to train on and validate with; the test split is empty.
        device: What trains.
        tracking: What is told of each trial.
        quiet: Open, so that nobody else times anything meanwhile.
    """
    study = studies.find(task.study, search.settings.storage)
    if study is None:
        raise FmnistError(f"study: there is no {task.study} in {search.settings.storage} as seen from this worker")
    if "points" not in study.user_attrs:
        study.sampler = sampling.sampler(search.settings, search.space, study, task.index)
    study.pruner = sampling.pruner(search.settings, search.base.recipe.epochs)
    with studies.at_work(task.study, search.settings.storage) as process:
        worker = process | {"command": task.command}
        while task.leader in (None, os.getppid()) and not studies.repeated_error(study, task.skipped):
            start = perf_counter()
            with ExitStack() as claimed:  # until the points are drawn, so that no two draw the same
                claimed.enter_context(studies.lock(task.study, search.settings.storage))
                if not studies.remaining(study, task.total):
                    return
                count = _num_at_once(study, search)
                meeting = Meeting(count, splits, claimed.close) if count > 1 else None
                on_drawn = meeting.drawn if meeting else claimed.close
                attempts = [
                    _Attempt(task, search, splits, device, tracking, quiet, worker, on_drawn, meeting)
                    for _ in range(count)
                ]
                _run(study, attempts)
            _forget()
            for attempt in attempts:
                if attempt.run_id:
                    around = perf_counter() - start - attempt.fit_seconds
                    figures = {"perf/around_seconds": around} if count == 1 else {}
                    figures["perf/host_memory_bytes"] = machine.memory_bytes()
                    tracking.log_after(attempt.run_id, figures)


def _run(study: optuna.Study, attempts: Sequence["_Attempt"]) -> None:
    """Runs as many trials; several in as many threads of this process, each of which has a heart of its own."""

    def run(attempt: "_Attempt") -> None:
        try:
            study.optimize(attempt, n_trials=1, catch=(Exception,))
        finally:
            if attempt.meeting:
                attempt.meeting.leave()

    if len(attempts) == 1:
        run(attempts[0])
        return
    with ThreadPoolExecutor(len(attempts)) as threads:
        futures = [threads.submit(run, attempt) for attempt in attempts]
    for each in futures:
        each.result()  # raises what Optuna did: the storage may be away


def _num_at_once(study: optuna.Study, search: Search) -> int:
    """How many of the next trials are trained at once: those that wait with one configuration and their seeds.

    None are where latency is measured, which must be done in quiet; where several workers share the trials and the
    memory; and none of those that are tried again, as they may have taken too much of it.
    """
    waiting = studies.trials(study, TrialState.WAITING)
    possible = together.possible(search.base) and search.settings.workers == 1
    if not waiting or not possible or "latency" in search.objectives:
        return 1
    candidate = waiting[0].user_attrs.get("candidate")
    alike = takewhile(lambda each: candidate is not None and _is_fresh(each, candidate), waiting)
    return max(len([*alike]), 1)


def _is_fresh(trial: FrozenTrial, candidate: int) -> bool:
    """Whether a trial is of a candidate, and tried for the first time."""
    return trial.user_attrs.get("candidate") == candidate and "retry_history" not in trial.system_attrs


def _forget() -> None:
    """Frees what a model that is done with leaves: a circle of references, and the backend's kernels."""
    import keras

    keras.backend.clear_session(free_memory=False)
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()  # what is there after the first trial stays anyway; to look through it each time takes 0.2 s


@dataclass
class _Attempt:
    """One trial, as Optuna calls it."""

    task: Task
    search: Search
    splits: Splits
    device: Device
    tracking: Tracking
    quiet: processes.Quiet
    worker: dict[str, Any]
    on_drawn: Callable[[], None]
    meeting: Meeting | None
    """With the trials that are trained at the same time, if there are any."""
    run_id: str = ""
    fit_seconds: float = 0.0

    def __call__(self, trial: Trial) -> list[float]:
        trial.set_user_attr("worker", self.worker)
        asked = {name: trial.user_attrs[name] for name in ASKED_FOR if name in trial.user_attrs}
        with _error_kept(trial):
            point = {} if asked.get("candidate") == DEFAULT else sampling.suggest(trial, self.search.space)
            self.on_drawn()
            plan = plan_at(self.search.base, point) if point else self.search.base
            plan = dataclasses.replace(plan, seed=asked.get("seed", plan.seed))
            settled = Settled(plan.precision, plan.batch_parts, self.device.kind, self.device.num_threads)
            trial.set_user_attr("settled", dataclasses.asdict(settled))
            name = f"tune {plan.model.name} · "
            if asked:
                which = "own recipe" if asked["candidate"] == DEFAULT else f"trial {asked['candidate']} again"
                name += f"{which} · seed {plan.seed}"
            else:
                name += f"trial {trial.number}"
            tags = {"study": self.task.study, "trial": trial.number}
            pruned: optuna.TrialPruned | None = None
            with self.tracking.trial_run(self.task.run_id, name, tags | asked, point) as self.run_id:
                trial.set_user_attr("run_id", self.run_id)
                self.tracking.log_plan(plan, self.device)
                try:
                    figures = self._train(trial, plan)
                except optuna.TrialPruned as ended:
                    pruned = ended
            if pruned:
                raise pruned
        return [figures[objective] for objective in (("accuracy",) if asked else self.search.objectives)]

    def _train(self, trial: Trial, plan: Plan) -> dict[str, float]:
        telling = 0.0

        def on_epoch(epoch: Epoch) -> None:
            nonlocal telling
            begin = perf_counter()
            self.tracking.log_epoch(epoch)
            prunable = len(self.search.objectives) == 1 and "seed" not in trial.user_attrs
            if prunable:
                trial.report(epoch.validation_accuracy, epoch.number)
            self.quiet.pause()
            poor = prunable and epoch.number < plan.recipe.epochs and trial.should_prune()
            telling += perf_counter() - begin
            if poor:
                raise optuna.TrialPruned(f"after epoch {epoch.number}")

        start = perf_counter()
        state, seeds_at_once = "failed", 1
        figures: dict[str, float] = {}
        try:
            with ExitStack() as turn:
                if self.meeting:
                    fitted, self.fit_seconds = turn.enter_context(self.meeting.fitted(plan))
                    for epoch in fitted.history:
                        self.tracking.log_epoch(epoch)
                else:
                    try:
                        fitted = training.fit(plan, self.splits, on_epoch)
                    finally:
                        self.fit_seconds = perf_counter() - start - telling
                seeds_at_once = fitted.kept.seeds_at_once
                figures = {
                    "accuracy": fitted.viewed.accuracy if fitted.viewed else fitted.kept.validation_accuracy,
                    "parameters": fitted.model.count_params(),
                }
                if "latency" in self.search.objectives:
                    with self.quiet.alone():
                        seconds = latencies(fitted.predict, self.splits.validation.images)
                    figures["latency"] = statistics.median(seconds)
                if "seed" in trial.user_attrs:
                    trial.set_user_attr("num_parameters", figures["parameters"])
                    trial.set_user_attr("model_uri", self.tracking.log_model(fitted, self.splits, plan))
            state = "complete"
        except optuna.TrialPruned:
            state = "pruned"
            raise
        finally:
            figures |= {"perf/fit_seconds": self.fit_seconds} if self.fit_seconds else {}
            self.tracking.log_trial(state, figures, seeds_at_once=seeds_at_once)
        return figures


@contextmanager
def _error_kept(trial: Trial) -> Iterator[None]:
    """Keeps what a trial fails with beside it, in one line."""
    try:
        yield
    except optuna.TrialPruned:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        trial.set_user_attr("error", text[:500])
        raise
