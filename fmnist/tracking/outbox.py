"""The way to a tracking server that may go away: what it doesn't take is kept, and sent when it is back.

MLflow's calls to a server go through the outbox of the command. `fmnist.tracking.kept` keeps.
"""

import json
import os
import secrets
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import requests

from fmnist import cache, checkpoint
from fmnist.errors import FmnistError
from fmnist.tracking import kept, outbox_stores
from fmnist.tracking.outbox_stores import FIRST_VERSION, READS, WRITES

FOLDER_VARIABLE = "FMNIST_OUTBOX"  # of a command, for the processes that it starts
SECONDS_VARIABLE = "FMNIST_DELIVERY_SECONDS"  # for which the end of a command waits for a server
DELIVERY_SECONDS, RETRY_SECONDS, PROBE_SECONDS = 60.0, 5.0, 3
NEW_SECONDS = 60  # a folder as new may be one that another process is at making
DEFAULTS = {  # MLflow's own make a server that is away hold up a training for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
DELIVERED = "delivered late"


class ServerAwayWarning(UserWarning):
    """A tracking server has stopped to answer, or is back."""


class ServerAwayError(mlflow.MlflowException, FmnistError):  # type: ignore[misc]  # MLflow is untyped
    """A tracking server doesn't answer, and only it knows what was asked."""


class Outbox:
    """What a process knows of one server, and of the folder that it shares with others of its command."""

    def __init__(self, uri: str, folder: Path, *, owner: bool) -> None:
        self.uri, self.owner = uri, owner
        self.kept = kept.Kept(folder)
        self.outcome = ""
        """What became of what the server didn't take at once, once that has ended; empty if it took all."""
        self.ids: dict[str, str] = {}
        """Then: what was made while the server was away, by its ids here: those there."""
        self._begun = not owner
        self._owning: Any = None
        self._lock = threading.RLock()
        self._straight = False  # calls go to the server, unseen
        self._away: Exception | None = None
        self._next_try = 0.0

    def call(self, kind: str, name: str, ask: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """What the server, or the stand-in, answers to one of MLflow's calls."""
        with self._lock:
            if self._straight:
                return ask(**arguments)
            if name == "set_logged_model_tags":
                arguments["tags"] = [each for each in arguments["tags"] if not _tells_provisional_version(each)]
                if not arguments["tags"]:
                    return None
            if not self._away and self.kept.names_undelivered(arguments):
                self._go_away(ServerAwayError("another process of this command found that it doesn't answer"))
            self.try_to_deliver()
            writes, doubtful = name in WRITES[kind], False
            if not self._away:
                try:
                    if name in ("create_run", "create_logged_model"):
                        self._know_experiment(arguments["experiment_id"])
                    doubtful = writes
                    sent = kept.translated(arguments, self.kept.ids())
                    with self._going_straight(once=writes):
                        answer = ask(**sent)
                except (mlflow.MlflowException, requests.RequestException) as error:
                    if not (_is_away(error) and self._begun):
                        raise
                    self._go_away(error)
                else:
                    if writes:
                        self._note(kind, name, sent, kept.id_of(answer) if name.startswith("create_") else "")
                    elif name == "get_run" and answer.info.status == "RUNNING":
                        self._know_run(answer)
                    return answer
            if not (writes or name in READS[kind]):
                raise self._unknown()
            try:
                answer = self.kept.ask(kind, name, arguments, writes=writes, doubtful=doubtful)
            except mlflow.MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise self._unknown() from self._away
                raise
            if answer is None and not writes:
                raise self._unknown() from self._away
            return _routed(answer)

    def send(self, of: str, below: str, local: str, path: str | None, upload: Callable[[], None]) -> None:
        """Uploads a file or a folder to a run's, or a model's, artifacts, or keeps it."""
        with self._lock:
            if self._straight:
                return upload()
            self.try_to_deliver()
            target = self.kept.files(of) / below / (path or "")
            target.mkdir(parents=True, exist_ok=True)
            if Path(local).is_dir():
                shutil.copytree(local, target, dirs_exist_ok=True)
            else:
                shutil.copy(local, target)
            if not self._away:
                try:
                    with self._going_straight(once=True):
                        return upload()
                except (mlflow.MlflowException, requests.RequestException) as error:
                    if not _is_away(error):
                        raise
                    self._go_away(error)
            return self.kept.keep()

    def fetch(self, of: str, below: str, name: str, arguments: Any, ask: Callable[[], Any]) -> Any:
        """What the server tells of artifacts, or what is known of them here."""
        with self._lock:
            if self._straight:
                return ask()
            self.try_to_deliver()
            away = self._away
        if not away:
            try:
                return ask()
            except (mlflow.MlflowException, requests.RequestException) as error:
                if not (_is_away(error) and self._begun):
                    raise
                away = error
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        folder = self.kept.files(of)
        if not folder.exists() and of not in self.kept.known:
            raise self._unknown() from away
        (folder / below).mkdir(parents=True, exist_ok=True)
        return getattr(LocalArtifactRepository(str(folder / below)), name)(*arguments)

    def there(self, of: str) -> str:
        """The id that a run or a logged model has on the server."""
        return self.kept.ids().get(of, of)

    def try_to_deliver(self) -> None:
        """Delivers, if something is kept and the last try was some seconds ago."""
        if self._away and not self.kept.depth and time.monotonic() >= self._next_try:
            try:
                self.deliver()
            except (mlflow.MlflowException, requests.RequestException, FmnistError) as error:
                self._away = error
            self._next_try = time.monotonic() + RETRY_SECONDS

    def deliver(self) -> None:
        """Brings all that is kept to the server.

        Raises:
            mlflow.MlflowException: If it doesn't answer; and `requests.RequestException`.
            FmnistError: If it doesn't take it.
        """
        with self._lock:
            client = mlflow.MlflowClient(self.uri)
            with self._going_straight(once=True, seconds=PROBE_SECONDS):
                client.search_experiments(max_results=1)
            with self._going_straight(once=True):
                self.kept.deliver(client)
            self._away = None
        _warn(f"MLflow at {self.uri} is back: what was kept has been sent")

    def close(self, seconds: float) -> None:
        """Ends the outbox of a command: what is kept is sent within so many seconds, or left as a bundle.

        What changes runs of other commands is in no bundle: the next command sends it.
        """
        if not self._owning:
            return
        with self._lock:
            give_up = time.monotonic() + seconds
            while self.kept.markers():
                try:
                    self.deliver()
                    for marker in self.kept.markers():  # of processes that have ended
                        marker.unlink()
                except (mlflow.MlflowException, requests.RequestException, FmnistError) as error:
                    if time.monotonic() >= give_up:
                        self.outcome = f"kept: {self._leave(error)}"
                        break
                    time.sleep(1)
            if not self.outcome and self.kept.is_delivered():
                self.outcome = DELIVERED
            self.ids = self.kept.ids()
            self._owning.release()
            if not (self.outcome.startswith("kept") and self.kept.has_others()):
                shutil.rmtree(self.kept.folder)

    def take_over(self) -> None:
        """Sends what a command kept that was killed before it could, or drops what nobody needs."""
        folder = self.kept.folder
        self._owning = cache.hold(folder / "owner.lock")
        if not self._owning:
            return
        waits = bool(self.kept.markers())
        try:
            if waits and (folder / "server").read_text() == self.uri:
                self.deliver()
                checkpoint.rename(self.kept.ids())
                waits = False
        except (mlflow.MlflowException, requests.RequestException, FmnistError):
            return  # it stays for another time
        finally:
            self._owning.release()
            if not waits:
                shutil.rmtree(folder)

    def _leave(self, error: Exception) -> Path:
        """Leaves all that is kept as a bundle, and says how to import it."""
        name = f"kept-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.zip"
        path = Path.cwd() / name
        try:
            self.kept.export(path)
        except FmnistError:  # the current folder can't be written
            path = cache.folder() / name
            self.kept.export(path)
        reason = str(error).split("\n")[0]
        print(
            f"MLflow at {self.uri} did not take what was logged ({reason[:200]}): it is kept. When the server is "
            f"back, or for another store, type: mlflow run . -e import -P bundle={path}",
            file=sys.stderr,
        )
        return path

    def _go_away(self, error: Exception) -> None:
        self._away = error
        self._next_try = time.monotonic() + RETRY_SECONDS
        _warn(f"MLflow at {self.uri} doesn't answer: what is logged is kept here, and sent when it is back")

    def _unknown(self) -> ServerAwayError:
        return ServerAwayError(f"MLflow at {self.uri} doesn't answer: {self._away}. Check MLFLOW_TRACKING_URI")

    def _know_experiment(self, experiment_id: str) -> None:
        if experiment_id not in self.kept.known:
            with self._going_straight():
                experiment = mlflow.MlflowClient(self.uri).get_experiment(experiment_id)
            self._note("experiment", experiment)
            self.kept.known.add(experiment_id)

    def _know_run(self, run: Any) -> None:
        ours = self.kept.ids().values()  # the stand-in has those under their first ids
        if run.info.run_id not in {*self.kept.known, *ours}:
            self._know_experiment(run.info.experiment_id)
            self._note("run", run)
            self.kept.known.add(run.info.run_id)

    def _note(self, *entry: Any) -> None:
        if not self._begun:
            self._begun = True
            self._owning = cache.hold(self.kept.folder / "owner.lock")
            cache.write(self.kept.folder / "server", self.uri)
        self.kept.note(*entry)
        if isinstance(entry[-1], str):
            self.kept.known.add(entry[-1])

    @contextmanager
    def _going_straight(self, *, once: bool = False, seconds: int | None = None) -> Iterator[None]:
        """Calls go to the server; where a request may be done though no answer came, it isn't asked again."""
        values = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"} if once else {}
        values |= {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)} if seconds else {}
        before, was = {name: os.environ.get(name, "") for name in values}, self._straight
        os.environ.update(values)
        self._straight = True
        try:
            yield
        finally:
            os.environ.update(before)
            self._straight = was


_current: Outbox | None = None
_ended: Outbox | None = None


def enter(uri: str) -> None:
    """Lets what goes to a server go through the outbox of this command."""
    global _current
    if _current:
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    outbox_stores.register(current)
    shared = os.environ.get(FOLDER_VARIABLE, "")
    if shared and Path(shared).exists():
        _current = Outbox(uri, Path(shared), owner=False)
        return
    root = cache.folder() / "outbox"
    for folder in root.glob("*/"):
        if time.time() - folder.stat().st_mtime > NEW_SECONDS:
            _current = Outbox(uri, folder, owner=True)
            _current.take_over()
    _current = Outbox(uri, root / secrets.token_hex(8), owner=True)
    os.environ[FOLDER_VARIABLE] = str(_current.kept.folder)


def current() -> Outbox | None:
    """The outbox of this command, if its store is a server."""
    return _current


def leave(seconds: float | None = None) -> None:
    """Ends the outbox of this command, if it has one: what is kept is sent, or left as a bundle."""
    global _current, _ended
    if not (_current and _current.owner):
        return
    ended = _current
    try:
        ended.close(float(os.environ.get(SECONDS_VARIABLE) or DELIVERY_SECONDS) if seconds is None else seconds)
    finally:
        _current, _ended = None, ended
        os.environ.pop(FOLDER_VARIABLE, None)
    checkpoint.rename(ended.ids)


def told(result: dict[str, Any]) -> dict[str, Any]:
    """A result with the ids that the server gave, and what became of what it didn't take at once."""
    if not (_ended and _ended.outcome):
        return result
    text = json.dumps(result)
    for here, there in _ended.ids.items():
        text = text.replace(here, there)
    told: dict[str, Any] = json.loads(text)
    if _ended.outcome != DELIVERED and told.get("registered"):
        told["registered"] = None  # it will have a number where it is imported
    return told | {"tracking": _ended.outcome}


def _is_away(error: Exception) -> bool:
    if isinstance(error, mlflow.MlflowException):
        status = error.get_http_status_code()
    else:
        response = getattr(error, "response", None)
        status = 503 if response is None else response.status_code
    return bool(status >= 500 or status == 429)


def _tells_provisional_version(tag: Any) -> bool:
    """Whether a tag of a model tells a number that no server gave; where it gets one, the server tells that."""
    if tag.key != "mlflow.modelVersions":
        return False
    return any(int(each["version"]) >= FIRST_VERSION for each in json.loads(tag.value))


def _routed(answer: Any) -> Any:
    """An answer of the stand-in, with addresses of artifacts that come back to the outbox."""
    for each in answer if isinstance(answer, list) else [answer]:
        if isinstance(each, mlflow.entities.Run):
            each.info._artifact_uri = f"mlflow-artifacts:/{each.info.run_id}/artifacts"
        elif isinstance(each, mlflow.entities.LoggedModel):
            each.artifact_location = f"mlflow-artifacts:/{each.model_id}/artifacts"
    return answer


def _warn(text: str) -> None:
    warnings.warn(text, ServerAwayWarning, stacklevel=2)
