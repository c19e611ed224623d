"""What a tracking server doesn't take, since it doesn't answer: it is kept, and sent when the server is back.

MLflow's calls to a server go through here. While it answers they are noted as well: on disk, in a folder that the
processes of a command share. When it doesn't, a stand-in is made of the notes, and takes its place. To deliver is
to export the stand-in as a bundle and to bring that to the server, which adds only what the server has not: so it
doesn't matter whether a request that got no answer was done.
"""

import json
import os
import pickle
import secrets
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
import requests
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from fmnist import bundle, cache, checkpoint
from fmnist.errors import FmnistError
from fmnist.tracking import outbox_stores
from fmnist.tracking.outbox_stores import FIRST_VERSION, ID, READS, WRITES

if TYPE_CHECKING:
    from fmnist.tracking.standin import StandIn

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


class Outbox:
    """What a process knows of one server, and of the folder that it shares with others of its command."""

    def __init__(self, uri: str, folder: Path, *, owner: bool) -> None:
        self.uri, self.folder, self.owner = uri, folder, owner
        self.outcome = ""
        """What became of what the server didn't take at once, once that has ended; empty if it took all."""
        self.ids: dict[str, str] = {}
        """Then: what was made while the server was away, by its ids here: those there."""
        self._begun = not owner
        self._lock = threading.RLock()
        self._depth = 0  # how often the folder is held
        self._straight = False  # calls go to the server, unseen
        self._away: Exception | None = None
        self._next_try = 0.0
        self._known: set[str] = set()  # experiments, runs and models that notes tell of
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._journal, self._marker = folder / f"journal-{name}", folder / f"kept-{name}"
        self._owning: Any = None
        self._store: StandIn | None = None
        self._is_told = False

    def call(self, kind: str, name: str, ask: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """What the server, or the stand-in, answers to one of MLflow's calls."""
        with self._lock:
            if self._straight:
                return ask(**arguments)
            self.try_to_deliver()
            doubtful = False
            if name == "set_logged_model_tags":
                arguments["tags"] = [each for each in arguments["tags"] if not _tells_provisional_version(each)]
                if not arguments["tags"]:
                    return None
            if not self._away:
                try:
                    if name in ("create_run", "create_logged_model"):
                        self._know_experiment(arguments["experiment_id"])
                    doubtful = name in WRITES[kind]
                    sent = self._for_server(arguments)
                    with self._going_straight(once=doubtful):
                        answer = ask(**sent)
                except (mlflow.MlflowException, requests.RequestException) as error:
                    if not (_is_away(error) and self._begun):
                        raise
                    self._go_away(error)
                else:
                    if name in WRITES[kind]:
                        made = _id_of(answer) if name.startswith("create_") else ""
                        self._note((kind, name, sent, made))
                    elif name == "get_run" and answer.info.status == "RUNNING":
                        self._know_run(answer)
                    return answer
            return self._ask_stand_in(kind, name, arguments, doubtful=doubtful)

    def send(self, of: str, below: str, local: str, path: str | None, upload: Callable[[], None]) -> None:
        """Uploads a file or a folder to a run's, or a model's, artifacts, or keeps it."""
        with self._lock:
            if self._straight:
                return upload()
            self.try_to_deliver()
            target = self.files(of) / below / (path or "")
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
            return self._marker.touch()

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

        folder = self.files(of)
        if not folder.exists() and of not in self._known:
            raise self._unknown() from away
        (folder / below).mkdir(parents=True, exist_ok=True)
        return getattr(LocalArtifactRepository(str(folder / below)), name)(*arguments)

    def files(self, of: str) -> Path:
        """Where the artifacts of a run or a logged model lie here."""
        from fmnist.tracking import standin

        own = {there: here for here, there in self._state()["ids"].items()}
        return standin.files(self.folder, own.get(of, of))

    def there(self, of: str) -> str:
        """The id that a run or a logged model has on the server."""
        return str(self._state()["ids"].get(of, of))

    def try_to_deliver(self) -> None:
        """Delivers, if something is kept and the last try was some seconds ago."""
        if self._away and not self._depth and time.monotonic() >= self._next_try:
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
        from fmnist.tracking.bundles import Tally, bring

        with self._lock, self._holding():
            client = mlflow.MlflowClient(self.uri)
            with self._going_straight(once=True, seconds=PROBE_SECONDS):
                client.search_experiments(max_results=1)
            with self._going_straight(once=True), TemporaryDirectory(prefix="fmnist-outbox-") as folder:
                stand_in = self._stand_in()
                state = self._state()
                self._settle_doubts(client, stand_in, state)
                self._export(stand_in, Path(folder) / "bundle.zip")
                tally = Tally()
                with bundle.unpacked(Path(folder) / "bundle.zip") as unpacked:
                    ids = bring(unpacked, client, tally) | tally.versions
            state["ids"] |= {here: there for here, there in ids.items() if here != there}
            state["delivered"] = True
            self._write_state(state)
            self._marker.unlink(missing_ok=True)
            self._away = None
        _warn(f"MLflow at {self.uri} is back: what was kept has been sent")

    def close(self, seconds: float) -> None:
        """Ends the outbox of a command: what is kept is sent within so many seconds, or left as a bundle."""
        if not self._owning:
            return
        with self._lock:
            give_up = time.monotonic() + seconds
            while any(self.folder.glob("kept-*")):
                try:
                    self.deliver()
                    for marker in self.folder.glob("kept-*"):  # of processes that have ended
                        marker.unlink()
                except (mlflow.MlflowException, requests.RequestException, FmnistError) as error:
                    if time.monotonic() >= give_up:
                        self.outcome = f"kept: {self._leave(error)}"
                        break
                    time.sleep(1)
            state = self._state()
            if not self.outcome and state["delivered"]:
                self.outcome = DELIVERED
            self.ids = state["ids"]
            self._owning.release()
            shutil.rmtree(self.folder)

    def take_over(self) -> None:
        """Sends what a command kept that was killed before it could, or drops what nobody needs."""
        self._owning = cache.hold(self.folder / "owner.lock")
        if not self._owning:
            return
        kept, server = any(self.folder.glob("kept-*")), self.folder / "server"
        try:
            if kept and server.read_text() == self.uri:
                self.deliver()
                checkpoint.rename(self._state()["ids"])
                kept = False
        except (mlflow.MlflowException, requests.RequestException, FmnistError, OSError):
            return  # it stays for another time
        finally:
            self._owning.release()
            if not kept:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _leave(self, error: Exception) -> Path:
        """Leaves all that is kept as a bundle, and says how to import it."""
        with self._holding():
            stand_in = self._stand_in()
            name = f"kept-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.zip"
            path = Path.cwd() / name
            try:
                self._export(stand_in, path)
            except FmnistError:  # the current folder can't be written
                path = cache.folder() / name
                self._export(stand_in, path)
        reason = str(error).split("\n")[0]
        print(
            f"MLflow at {self.uri} did not take what was logged ({reason[:200]}): it is kept. When the server is "
            f"back, or for another store, type: mlflow run . -e import -P bundle={path}",
            file=sys.stderr,
        )
        return path

    def _ask_stand_in(self, kind: str, name: str, arguments: dict[str, Any], *, doubtful: bool) -> Any:
        if name not in READS[kind] | WRITES[kind]:
            raise self._unknown() from self._away
        with self._holding():
            stand_in = self._stand_in()
            own = {there: here for here, there in self._state()["ids"].items()}
            try:
                answer = stand_in.call(kind, name, _translated(arguments, own))
            except mlflow.MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise self._unknown() from self._away
                raise
            if answer is None and name in READS[kind]:
                raise self._unknown() from self._away
            if name in WRITES[kind]:
                self._marker.touch()
            if name.startswith("create_") and doubtful:
                state = self._state()
                state["doubtful"].append([name, _id_of(answer)])
                self._write_state(state)
            if name in ("create_run", "create_logged_model"):
                self._known.add(_id_of(answer))
            return _routed(answer)

    def _settle_doubts(self, client: mlflow.MlflowClient, stand_in: "StandIn", state: dict[str, Any]) -> None:
        """Finds what the server made in answer to a request whose answer was lost, and marks it as ours."""
        kept = mlflow.MlflowClient(stand_in.uri, stand_in.uri)
        for name, own in state["doubtful"]:
            if name == "create_run":
                info = kept.get_run(own).info
                query = f"attributes.start_time = {info.start_time} and attributes.run_name = '{info.run_name}'"
                for run in client.search_runs([info.experiment_id], query):
                    if "bundle.run" not in run.data.tags:
                        client.set_tag(run.info.run_id, "bundle.run", own)
            elif name == "create_logged_model":
                model = kept.get_logged_model(own)
                run_id = state["ids"].get(model.source_run_id, model.source_run_id)
                for each in client.search_logged_models([model.experiment_id], f"name = '{model.name}'"):
                    is_known = each.model_id in self._known or "bundle.model" in each.tags
                    if each.source_run_id == run_id and not is_known:
                        client.set_logged_model_tags(each.model_id, {"bundle.model": own})
            elif name == "create_model_version":
                registered, _, number = own.rpartition("/")
                source = kept.get_model_version(registered, number).source
                source = ID.sub(lambda found: state["ids"].get(found.group(), found.group()), source)
                for version in client.search_model_versions(f"name = '{registered}'"):
                    if version.source == source and "bundle.version" not in version.tags:
                        client.set_model_version_tag(registered, str(version.version), "bundle.version", own)
        state["doubtful"] = []

    def _export(self, stand_in: "StandIn", to: Path) -> None:
        from fmnist.tracking import exports

        client = mlflow.MlflowClient(stand_in.uri, stand_in.uri)
        known = dict(_artifact_repos_cache)  # by ids, whatever the store
        _artifact_repos_cache.clear()
        try:
            exports.export(exports.find(["all"], client), to, client, small=False)
        finally:
            _artifact_repos_cache.clear()
            _artifact_repos_cache.update(known)

    def _go_away(self, error: Exception) -> None:
        self._away = error
        self._next_try = time.monotonic() + RETRY_SECONDS
        _warn(f"MLflow at {self.uri} doesn't answer: what is logged is kept here, and sent when it is back")

    def _unknown(self) -> mlflow.MlflowException:
        return mlflow.MlflowException(f"MLflow at {self.uri} doesn't answer: {self._away}")

    def _for_server(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return _translated(arguments, self._state()["ids"])

    def _know_experiment(self, experiment_id: str) -> None:
        if experiment_id not in self._known:
            with self._going_straight():
                self._note(("experiment", mlflow.MlflowClient(self.uri).get_experiment(experiment_id)))
            self._known.add(experiment_id)

    def _know_run(self, run: Any) -> None:
        ours = self._state()["ids"].values()  # the stand-in has those under their first ids
        if run.info.run_id not in {*self._known, *ours}:
            self._know_experiment(run.info.experiment_id)
            self._note(("run", run))
            self._known.add(run.info.run_id)

    def _note(self, entry: tuple[Any, ...]) -> None:
        if not self._begun:
            self._begun = True
            self._owning = cache.hold(self.folder / "owner.lock")
            cache.write(self.folder / "server", self.uri)
        with self._journal.open("ab") as file:
            file.write(pickle.dumps(entry))
        if entry[-1] and isinstance(entry[-1], str):
            self._known.add(entry[-1])

    def _stand_in(self) -> "StandIn":
        """The stand-in, after it has been told all that processes of this command have noted."""
        from fmnist.tracking.standin import StandIn

        self._store = stand_in = self._store or StandIn(self.folder)
        if self._is_told:  # it asks for a model while it is told of a version of that
            return stand_in
        self._is_told = True
        state = self._state()
        own = {there: here for here, there in state["ids"].items()}
        for journal in sorted(self.folder.glob("journal-*")):
            with journal.open("rb") as file:
                file.seek(state["read"].get(journal.name, 0))
                while True:
                    try:
                        entry = pickle.load(file)  # our own
                    except (EOFError, pickle.UnpicklingError):  # another process is at writing it
                        break
                    if entry[0] == "experiment":
                        stand_in.know_experiment(entry[1])
                    elif entry[0] == "run":
                        stand_in.know_run(entry[1])
                    else:
                        kind, name, arguments, made = entry
                        stand_in.call(kind, name, _translated(arguments, own), given_id=made)
                    state["read"][journal.name] = file.tell()
        self._write_state(state)
        self._is_told = False
        return stand_in

    def _state(self) -> dict[str, Any]:
        """Ids, and versions, here and on the server; how far journals have been read; what is in doubt."""
        file = self.folder / "state.json"
        state: dict[str, Any] = {"ids": {}, "read": {}, "doubtful": [], "delivered": False}
        return state | json.loads(file.read_text()) if file.exists() else state

    def _write_state(self, state: Mapping[str, Any]) -> None:
        cache.write(self.folder / "state.json", json.dumps(state))

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """The folder is this process's."""
        self._depth += 1
        try:
            if self._depth > 1:
                yield
            else:
                with cache.lock(self.folder / "lock"):
                    yield
        finally:
            self._depth -= 1

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
    os.environ[FOLDER_VARIABLE] = str(_current.folder)


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


def _id_of(answer: Any) -> str:
    """The id of what was made: a run, a logged model, a version (`NAME/NUMBER`)."""
    if hasattr(answer, "info"):
        return str(answer.info.run_id)
    if hasattr(answer, "version"):
        return f"{answer.name}/{answer.version}"
    return str(getattr(answer, "model_id", ""))


def _tells_provisional_version(tag: Any) -> bool:
    """Whether a tag of a model tells a number that no server gave; where it gets one, the server tells that."""
    if tag.key != "mlflow.modelVersions":
        return False
    return any(int(each["version"]) >= FIRST_VERSION for each in json.loads(tag.value))


def _translated(arguments: dict[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of a call with other ids, wherever they stand in them; and other numbers of versions."""
    if not ids:
        return arguments
    raw = pickle.dumps(arguments)
    for old, new in ids.items():
        if ID.fullmatch(old):  # as long as the new one: the form of the bytes stays
            raw = raw.replace(old.encode(), new.encode())
    changed: dict[str, Any] = pickle.loads(raw)  # made here
    version = ids.get(f"{changed.get('name')}/{changed.get('version')}")
    return changed | {"version": version.rpartition("/")[2]} if version else changed


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
