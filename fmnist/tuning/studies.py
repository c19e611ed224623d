"""Optuna's studies: where one is kept, who works on it, and what is left to do.

Many processes share a study. A trial belongs to the process that runs it: one whose process is gone, here or
(by Optuna's heartbeat) on another machine, is failed and tried once more.
"""

import hashlib
import os
import re
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fmnist import cache, processes
from fmnist.errors import FmnistError
from fmnist.settings import AUTO

DIRECTIONS = {"accuracy": "MAXIMIZE", "latency": "MINIMIZE", "parameters": "MINIMIZE"}
HEARTBEAT_SECONDS, GRACE_SECONDS = 5, 30
SAME_ERRORS = 3  # so many in a row end a study
LOST = "its process ended without a word (often: out of memory)"
ASKED_FOR = ("candidate", "seed")  # what a trial was enqueued with, and is tried again with


def check_storage(storage: str) -> None:
    """Checks that a storage can be reached, before anything is made.

    Raises:
        FmnistError: If the driver isn't installed, or nobody answers.
    """
    if storage == AUTO:
        try:
            _folder().mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cache.unwritable(error) from None
        return
    try:
        import psycopg
    except ImportError:
        raise FmnistError("storage: PostgreSQL needs a driver; type: pip install '.[postgres]'") from None
    try:
        psycopg.connect(_plain(storage), connect_timeout=5).close()
    except psycopg.Error as error:
        said = " ".join(str(error).split())
        raise FmnistError(f"storage: no PostgreSQL answers at {without_password(storage)}: {said}") from None


def without_password(storage: str) -> str:
    """A storage as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1@", storage)


def location(name: str, storage: str) -> str:
    """What `optuna-dashboard` takes to show a study."""
    return str(_journal(name)) if storage == AUTO else without_password(storage)


def find(name: str, storage: str) -> optuna.Study | None:
    """The study of a name, if there is one."""
    if storage == AUTO and not _journal(name).exists():
        return None
    try:
        return optuna.load_study(study_name=name, storage=_storage(name, storage), sampler=_no_sampler())
    except KeyError:
        return None


def find_or_create(
    name: str, storage: str, objectives: tuple[str, ...], attributes: Mapping[str, Any]
) -> optuna.Study:
    """The study of a name, made with some attributes if it isn't there."""
    with lock(name, storage):
        study = find(name, storage)
        if study is None:
            study = optuna.create_study(
                study_name=name,
                storage=_storage(name, storage),
                directions=[StudyDirection[DIRECTIONS[objective]] for objective in objectives],
                sampler=_no_sampler(),
            )
            for key, value in attributes.items():
                study.set_user_attr(key, value)
    return study


@contextmanager
def lock(name: str, storage: str) -> Iterator[None]:
    """Held by one process at a time, of all machines that share the storage; released if it is killed."""
    if storage == AUTO:
        import fcntl

        _folder().mkdir(parents=True, exist_ok=True)
        with _journal(name).with_suffix(".claim").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        return
    import psycopg

    connection = psycopg.connect(_plain(storage))
    try:
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        connection.cursor().execute("SELECT pg_advisory_lock(%s)", [key])
        yield
    finally:
        connection.close()


def trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    """The trials in any of some states, or all."""
    return study.get_trials(deepcopy=False, states=states or None)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have begun: all but those that wait, and those that were lost and are tried again."""
    again = _tried_again(study)
    return [trial for trial in trials(study) if trial.state != TrialState.WAITING and trial.number not in again]


def remaining(study: optuna.Study, total: int) -> int:
    """How many trials have yet to begin."""
    return max(total - len(counted(study)), 0)


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that have come to their end, whatever it was, in that order."""
    found = [(trial.datetime_complete, trial) for trial in trials(study) if trial.state.is_finished()]
    return [trial for moment, trial in sorted(found, key=lambda pair: str(pair[0]))]


def repeated_error(study: optuna.Study, skipped: int) -> str | None:
    """The error that the last three trials to end have all failed with.

    The first `skipped` don't count, nor do those that are tried again.
    """
    again = _tried_again(study)
    last = [trial for trial in ended(study)[skipped:] if trial.number not in again][-SAME_ERRORS:]
    errors = {trial.user_attrs.get("error", LOST) if trial.state == TrialState.FAIL else None for trial in last}
    return errors.pop() if len(last) == SAME_ERRORS and len(errors) == 1 else None


def sweep(study: optuna.Study, storage: str, *, interrupted: str | None = None) -> list[FrozenTrial]:
    """Fails the running trials whose process is gone, and queues each again, a lost one once; gives those failed.

    Args:
        study: The study.
        storage: Where it is kept.
        interrupted: A command whose workers have been stopped, on whatever machine.
    """

    def gone() -> list[tuple[FrozenTrial, bool]]:
        found = []
        for trial in trials(study, TrialState.RUNNING):
            stopped = trial.user_attrs.get("worker", {}).get("command", "") == interrupted
            if stopped or _has_died(study, trial):
                found.append((trial, stopped))
        return found

    if not gone():
        return []
    with lock(study.study_name, storage):  # others sweep too
        swept = gone()
        for trial, stopped in swept:
            study._storage.set_trial_user_attr(trial._trial_id, "error", "interrupted" if stopped else LOST)
            _queue_again(study, trial, lost=not stopped)
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial, _ in swept]


def sweep_other_machines(study: optuna.Study) -> None:
    """The same for trials of other machines, whose heart has stopped; on a storage that knows hearts."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)


def this_process() -> dict[str, Any]:
    """Names this process, among those of all machines."""
    return {**processes.this_process(), "parent": os.getppid()}


@contextmanager
def leading(study: optuna.Study, storage: str) -> Iterator[bool]:
    """Whether this process leads a study from now on; if another does, it only helps to search.

    The leader re-trains, tests and registers when the search is done. Every few seconds it says that it is there.
    """
    with lock(study.study_name, storage):
        owner = study.user_attrs.get("owner")
        leads = not (owner and _leads(study, owner))
        if leads:
            _beat(study)
    if not leads:
        yield False
        return
    done = threading.Event()

    def beat_on() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            _beat(study)

    beating = threading.Thread(target=beat_on, daemon=True)
    beating.start()
    try:
        yield True
    finally:
        done.set()
        beating.join()
        study.set_user_attr("owner", None)


def _beat(study: optuna.Study) -> None:
    study.set_user_attr("owner", {**this_process(), "beat": time.time()})


def _leads(study: optuna.Study, owner: dict[str, Any]) -> bool:
    if _is_here(study, owner):
        return processes.is_alive(owner) is not False
    return bool(time.time() - owner["beat"] < GRACE_SECONDS)


def _has_died(study: optuna.Study, trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is None:  # killed before it could say who it is
        return trial.datetime_start is None or time.time() - trial.datetime_start.timestamp() > GRACE_SECONDS
    return _is_here(study, worker) and processes.is_alive(worker) is False


def _is_here(study: optuna.Study, process: dict[str, Any]) -> bool:
    """Whether a process is of this machine; a file's always are, even if the machine has a new name."""
    in_file = isinstance(study._storage, optuna.storages.JournalStorage)
    return in_file or bool(process["host"] == socket.gethostname())


def _tried_again(study: optuna.Study) -> set[int]:
    """Numbers of the trials that were queued again."""
    return {number for trial in trials(study) for number in trial.system_attrs.get("retry_history", ())}


def _queue_again(study: optuna.Study, trial: FrozenTrial, *, lost: bool = True) -> None:
    """Queues a trial again at the same point, unless it was lost for the second time."""
    times_lost = trial.system_attrs.get("times_lost", 0) + lost
    if times_lost > 1 or trial.number in _tried_again(study):
        return
    history = [*trial.system_attrs.get("retry_history", ()), trial.number]
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={name: trial.user_attrs[name] for name in ASKED_FOR if name in trial.user_attrs},
            # under the names that Optuna's own callback uses, and its dashboard and samplers know
            system_attrs={
                **trial.system_attrs,
                "failed_trial": history[0],
                "retry_history": history,
                "times_lost": times_lost,
            },
        )
    )


def _storage(name: str, storage: str) -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # a trial's error is told with the trial
    if storage == AUTO:
        backend = JournalFileBackend(str(_journal(name)))
        return optuna.storages.JournalStorage(backend)
    with _experimental():
        return optuna.storages.RDBStorage(
            _plain(storage).replace("postgresql://", "postgresql+psycopg://"),
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=_queue_again,
        )


def _experimental() -> AbstractContextManager[Any]:
    """Optuna says of its heartbeat that it may change; its version is bound."""
    return warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore")


def _no_sampler() -> optuna.samplers.BaseSampler:
    """For processes that only watch: samplers that work are made in `fmnist.tuning.trials`."""
    return optuna.samplers.RandomSampler()


def _folder() -> Path:
    return cache.folder() / "studies"


def _journal(name: str) -> Path:
    return _folder() / f"{name}.journal"


def _plain(storage: str) -> str:
    """An SQLAlchemy URL as the driver itself takes it."""
    return re.sub(r"^postgresql\+\w+://", "postgresql://", storage)
