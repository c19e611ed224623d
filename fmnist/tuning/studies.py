"""Optuna's studies: where one is kept, who works on it, and what is left to do.

Many processes share a study. A trial belongs to the process that runs it: one whose process is gone is failed and
tried once more. With a file, a process is known by a lock that it holds beside the study, on whatever host or in
whatever container that shares the folder; with PostgreSQL, on the same host by its identity, on others by Optuna's
heartbeat.
"""

import copy
import hashlib
import re
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fmnist import cache, processes
from fmnist.errors import FmnistError
from fmnist.options import AUTO

DIRECTIONS = {"accuracy": "MAXIMIZE", "latency": "MINIMIZE", "parameters": "MINIMIZE"}
METRIC_NAMES = {"accuracy": "validation accuracy", "latency": "latency in seconds", "parameters": "parameters"}
HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 120  # longer than a database is away when it is started anew: nobody's heart is heard meanwhile
AWAY_SECONDS = 60.0
SAME_ERRORS = 3  # so many in a row end a study
LOST = "its process ended without a word (often: out of memory)"
INTERRUPTED = "interrupted"


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
        _connect(storage).close()
    except psycopg.Error as error:
        raise _away(storage, error) from None


def without_password(storage: str) -> str:
    """A storage as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1@", storage)


def location(name: str, storage: str) -> str:
    """What `optuna-dashboard` takes to show a study: a file, or an SQLAlchemy URL with our driver's name."""
    return str(_journal(name)) if storage == AUTO else _for_sqlalchemy(without_password(storage))


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
        if study.metric_names is None:  # new, or of a time before objectives had names
            with _experimental():
                study.set_metric_names([METRIC_NAMES[objective] for objective in objectives])
    return study


@contextmanager
def lock(name: str, storage: str) -> Iterator[None]:
    """Held by one process at a time, of all machines that share the storage; released if it is killed."""
    if storage == AUTO:
        with cache.lock(_journal(name).with_suffix(".claim")):
            yield
        return
    with closing(_connect(storage)) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [_lock_number(name)])
        yield


class Lead(AbstractContextManager["Lead"]):
    """The lead of a study, which one process has at a time: it re-trains, tests and registers; others help.

    The file system or the database keeps it, until the process lets go of it or ends.
    """

    def __init__(self, name: str, storage: str) -> None:
        self._name, self._storage = name, storage
        self._held: Any = None
        if storage == AUTO:
            self._held = cache.hold(_journal(name).with_suffix(".lead"))
            self.leads = self._held is not None
        else:
            self._connection = _connect(storage)
            self.leads = self._take()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._held.release()
        if self._storage != AUTO:
            self._connection.close()

    def keep(self) -> None:
        """To be called again and again, and before each step that one process alone may take.

        A database that is started anew has let go of the lead: as soon as it answers again, it is asked for it.

        Raises:
            FmnistError: If another process has it by then, or the database doesn't come back.
        """
        if self._storage == AUTO:
            return  # the system takes it from nobody
        import psycopg

        give_up = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                self._connection.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > give_up:
                    raise _away(self._storage, error) from None
            time.sleep(0.2)
            with suppress(psycopg.OperationalError):
                self._connection.close()
                self._connection = _connect(self._storage)
                if self.leads and not self._take():
                    raise FmnistError(
                        f"study: its database was away, and now another command leads {self._name}; type this "
                        "command again to help it"
                    )

    def _take(self) -> bool:
        number = _lock_number(f"{self._name} lead")
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", [number]).fetchone()
        return bool(row and row[0])


@contextmanager
def at_work(name: str, storage: str) -> Iterator[dict[str, Any]]:
    """What others know this process by, as long as it works on a study."""
    process = processes.this_process()
    if storage != AUTO:
        yield process
        return
    held = _worker_lock(secrets.token_hex(8))
    with cache.lock(held):
        try:
            yield process | {"lock": held.stem}
        finally:
            held.unlink()  # nobody waits for it


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


def error(study: optuna.Study, trial: FrozenTrial) -> str:
    """What a failed trial failed with."""
    swept = INTERRUPTED if trial.number in _interrupted(study) else LOST
    return str(trial.user_attrs.get("error", swept))


def repeated_error(study: optuna.Study, skipped: int) -> str | None:
    """The error that the last three trials to end have all failed with.

    The first `skipped` don't count, nor do those that are tried again.
    """
    again = _tried_again(study)
    last = [trial for trial in ended(study)[skipped:] if trial.number not in again][-SAME_ERRORS:]
    errors = {error(study, trial) if trial.state == TrialState.FAIL else None for trial in last}
    return errors.pop() if len(last) == SAME_ERRORS and len(errors) == 1 else None


def sweep(study: optuna.Study, storage: str, *, interrupted: str | None = None) -> list[FrozenTrial]:
    """Fails the running trials whose process is gone, and queues them again; gives those failed.

    Args:
        study: The study.
        storage: Where it is kept.
        interrupted: A command whose workers have been stopped, on whatever machine.
    """

    def gone() -> list[tuple[FrozenTrial, bool]]:
        found = []
        for trial in trials(study, TrialState.RUNNING):
            stopped = trial.user_attrs.get("worker", {}).get("command", "") == interrupted
            if stopped or _has_died(trial, storage):
                found.append((trial, stopped))
        return found

    if not gone():
        return []
    with lock(study.study_name, storage):  # others sweep too, and whoever begins a trial has it until it is known
        swept = gone()
        for trial, stopped in swept:
            if stopped:
                study.set_user_attr("interrupted", [*_interrupted(study), trial.number])
            _queue_again(study, copy.deepcopy(trial))
            study.tell(trial.number, state=TrialState.FAIL)
    return [trial for trial, _ in swept]


def sweep_other_machines(study: optuna.Study) -> None:
    """The same for trials of other machines, whose heart has stopped; on a storage that knows hearts."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)


def _has_died(trial: FrozenTrial, storage: str) -> bool:
    worker = trial.user_attrs.get("worker")
    if worker is None:
        return True  # killed as it began: it says who it is before it lets go of the study's lock
    if storage == AUTO:
        return not cache.is_held(_worker_lock(worker.get("lock", "")))
    return processes.is_alive(worker) is False


def _tried_again(study: optuna.Study) -> set[int]:
    """Numbers of the trials that were queued again."""
    return {number for trial in trials(study) for number in trial.system_attrs.get("retry_history", ())}


def _interrupted(study: optuna.Study) -> list[int]:
    """Numbers of the trials that were stopped with the command that ran them."""
    return list(study.user_attrs.get("interrupted", ()))


def _queue_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues a trial again at the same point: one that was lost, once; an interrupted one as often as it takes."""
    numbers = {trial.number, *trial.system_attrs.get("retry_history", ())}
    if len(numbers - set(_interrupted(study))) <= 1 and trial.number not in _tried_again(study):
        with _experimental():
            RetryHeartbeatStaleTrialCallback()(study, trial)


class _Database(RDBStorage):
    """PostgreSQL, whose heartbeat goes on after the database was away."""

    def record_heartbeat(self, trial_id: int) -> None:
        with suppress(optuna.exceptions.StorageInternalError):  # the next beat tells as much
            super().record_heartbeat(trial_id)


def _storage(name: str, storage: str) -> optuna.storages.BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # a trial's error is told with the trial
    if storage == AUTO:
        return JournalStorage(JournalFileBackend(str(_journal(name))))
    with lock("", storage), _experimental():  # two that make the tables of a new database at once break it
        return _Database(
            _for_sqlalchemy(storage),
            engine_kwargs={"pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=_queue_again,
        )


def _connect(storage: str) -> Any:
    """A connection of one's own, whose end either side notices within half a minute."""
    import psycopg

    idle = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4}
    options = " ".join(f"-c tcp_{name}={value}" for name, value in idle.items())
    return psycopg.connect(_plain(storage), autocommit=True, connect_timeout=5, options=options, **idle)


def _lock_number(name: str) -> int:
    """As PostgreSQL names the lock of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _away(storage: str, error: Exception) -> FmnistError:
    said = " ".join(str(error).split())
    return FmnistError(f"storage: no PostgreSQL answers at {without_password(storage)}: {said}")


def _experimental() -> AbstractContextManager[Any]:
    """Optuna says of its heartbeat, and of objectives' names, that they may change; its version is bound."""
    return warnings.catch_warnings(category=optuna.exceptions.ExperimentalWarning, action="ignore")


def _no_sampler() -> optuna.samplers.BaseSampler:
    """For processes that only watch: samplers that work are made in `fmnist.tuning.trials`."""
    return optuna.samplers.RandomSampler()


def _folder() -> Path:
    return cache.folder() / "studies"


def _journal(name: str) -> Path:
    return _folder() / f"{name}.journal"


def _worker_lock(process: str) -> Path:
    return _folder() / "workers" / f"{process}.lock"


def _plain(storage: str) -> str:
    """An SQLAlchemy URL as the driver itself takes it."""
    return re.sub(r"^postgresql\+\w+://", "postgresql://", storage)


def _for_sqlalchemy(storage: str) -> str:
    """The same as SQLAlchemy takes it, which else looks for another driver."""
    return _plain(storage).replace("postgresql://", "postgresql+psycopg://")
