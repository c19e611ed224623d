"""What a command has told a tracking server, and what the server has not taken: a folder on disk.

The processes of a command share the folder. Each notes there what the server took; when the server is away, a
stand-in is made of the notes, and takes the rest. To deliver is to export the stand-in as a bundle and to bring
that to the server, which adds only what the server has not: so it doesn't matter whether a request that got no
answer was done.
"""

import json
import os
import pickle
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from fmnist import bundle, cache
from fmnist.tracking import exports
from fmnist.tracking.bundles import Tally, bring
from fmnist.tracking.outbox_stores import ID

if TYPE_CHECKING:
    from fmnist.tracking.standin import StandIn


class Kept:
    """The folder, as one process uses it; within `held` no other does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._journal, self._marker = folder / f"journal-{name}", folder / f"kept-{name}"
        self._others = folder / f"others-{name}"
        self._stand_in: StandIn | None = None
        self._is_telling = False
        self.depth = 0
        """How often it is held."""
        self.known: set[str] = set()
        """Experiments, runs and models that notes tell of, or that were made here."""

    def note(self, *entry: Any) -> None:
        """Notes what the server took: an experiment, a run, or a call with the id of what it made."""
        with self._journal.open("ab") as file:
            file.write(pickle.dumps(entry))

    def ask(self, kind: str, name: str, arguments: dict[str, Any], *, writes: bool, doubtful: bool) -> Any:
        """What the stand-in answers to a call.

        What changes a run, a model or a version that isn't of this command waits for the server.

        Args:
            kind: Of the store, with `name` and `arguments` of its method.
            name: Of the method.
            arguments: By their names.
            writes: Whether it changes something.
            doubtful: Whether the server may have done it all the same.

        Raises:
            mlflow.MlflowException: If the stand-in doesn't know; with `RESOURCE_DOES_NOT_EXIST`.
        """
        with self.held():
            stand_in, state = self._told(), self._state()
            arguments = translated(arguments, _reversed(state["ids"]))
            if writes:
                self._marker.touch()
            inputs = [each for each in arguments.get("models") or [] if each.model_id not in self.known]
            if name == "log_inputs" and inputs:
                self._postpone(kind, name, {"run_id": arguments["run_id"], "models": inputs})
            try:
                if name == "get_metric_history":  # which answers nothing of a run that isn't there
                    stand_in.call(kind, "get_run", {"run_id": arguments["run_id"]})
                answer = stand_in.call(kind, name, arguments)
            except mlflow.MlflowException as error:
                metrics = arguments.get("metrics", [])
                if name == "log_batch" and any(each.model_id for each in metrics):  # of a model of another command
                    self._postpone(kind, name, arguments)
                    own = [mlflow.entities.Metric(m.key, m.value, m.timestamp, m.step) for m in metrics]
                    return stand_in.call(kind, name, arguments | {"metrics": own})
                if writes and not name.startswith("create_") and error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return self._postpone(kind, name, arguments)
                raise
            if name.startswith("create_") and (made := id_of(answer)):
                self.known.add(made)
                self._write(state | {"made": [*state["made"], [name, made, doubtful]]})
            return answer

    def deliver(self, client: mlflow.MlflowClient) -> None:
        """Brings all to the server.

        Raises:
            mlflow.MlflowException: If the server doesn't answer; and `requests.RequestException`.
            FmnistError: If it doesn't take it.
        """
        with self.held(), TemporaryDirectory(prefix="fmnist-outbox-") as folder:
            self._told()
            self._settle_doubts(client)
            self.export(Path(folder) / "bundle.zip")
            tally = Tally()
            with bundle.unpacked(Path(folder) / "bundle.zip") as unpacked:
                ids = bring(unpacked, client, tally) | tally.versions
            state = self._state()
            state["ids"] |= {here: there for here, there in ids.items() if here != there}
            made = [[name, own, False] for name, own, _ in state["made"]]
            self._write(state | {"made": made, "delivered": True})
            for others in self.folder.glob("others-*"):
                for kind, name, arguments in _entries(others):
                    store = (
                        client._tracking_client.store
                        if kind == "tracking"
                        else client._get_registry_client().store
                    )
                    try:
                        getattr(store, name)(**translated(arguments, state["ids"]))
                    except mlflow.MlflowException as error:
                        if error.get_http_status_code() >= HTTPStatus.TOO_MANY_REQUESTS:
                            raise
                        warnings.warn(f"MLflow refuses, for good, a {name} that was kept: {error}", stacklevel=2)
                others.unlink()
            self._marker.unlink(missing_ok=True)

    def export(self, to: Path) -> None:
        """Writes all as a bundle.

        Raises:
            FmnistError: If it can't be written.
        """
        with self.held():
            stand_in = self._told()
            client = mlflow.MlflowClient(stand_in.uri, stand_in.uri)
            known = dict(_artifact_repos_cache)  # by ids, whatever the store
            _artifact_repos_cache.clear()
            try:
                exports.export(exports.find(["all"], client), to, client, small=False)
            finally:
                _artifact_repos_cache.clear()
                _artifact_repos_cache.update(known)

    def markers(self) -> list[Path]:
        """A file for each process that has kept what isn't delivered."""
        return list(self.folder.glob("kept-*"))

    def has_others(self) -> bool:
        """Whether something waits for the server that changes what isn't of this command."""
        return any(self.folder.glob("others-*"))

    def keep(self) -> None:
        """Notes that a file of a run or a model isn't delivered."""
        self._marker.touch()

    def files(self, of: str) -> Path:
        """Where the artifacts of a run or a logged model lie here."""
        own = _reversed(self.ids()).get(of, of)
        return self.folder / "files" / ("models" if own.startswith("m-") else "") / own / "artifacts"

    def ids(self) -> dict[str, str]:
        """Ids, and versions as `NAME/NUMBER`, of what was made here: those on the server."""
        ids: dict[str, str] = self._state()["ids"]
        return ids

    def is_delivered(self) -> bool:
        """Whether anything has been delivered."""
        return bool(self._state()["delivered"])

    def names_undelivered(self, arguments: dict[str, Any]) -> bool:
        """Whether a call names what was made here, by whichever process, and isn't on the server yet."""
        state = self._state()
        waiting = [own for _, own, _ in state["made"] if own not in state["ids"] and ID.fullmatch(own)]
        raw = pickle.dumps(arguments) if waiting else b""
        return any(own.encode() in raw for own in waiting)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder is this process's."""
        self.depth += 1
        try:
            if self.depth > 1:
                yield
            else:
                with cache.lock(self.folder / "lock"):
                    yield
        finally:
            self.depth -= 1

    def _told(self) -> "StandIn":
        """The stand-in, after it has been told all that processes of this command have noted."""
        from fmnist.tracking.standin import StandIn  # and MLflow's own stores

        self._stand_in = stand_in = self._stand_in or StandIn(self.folder)
        if self._is_telling:  # it asks for a model while it is told of a version of that
            return stand_in
        self._is_telling = True
        state = self._state()
        own = _reversed(state["ids"])
        try:
            for journal in sorted(self.folder.glob("journal-*")):
                for entry in _entries(journal, state["read"]):
                    if entry[0] == "experiment":
                        stand_in.know_experiment(entry[1])
                    elif entry[0] == "run":
                        stand_in.know_run(entry[1])
                    else:
                        kind, name, arguments, made = entry
                        with suppress(mlflow.MlflowException):  # of what isn't this command's; the server has it
                            stand_in.call(kind, name, translated(arguments, own), given_id=made)
        finally:
            self._write(state)
            self._is_telling = False
        return stand_in

    def _postpone(self, kind: str, name: str, arguments: dict[str, Any]) -> None:
        with self._others.open("ab") as file:
            file.write(pickle.dumps((kind, name, arguments)))

    def _settle_doubts(self, client: mlflow.MlflowClient) -> None:
        """Finds what the server made in answer to a request whose answer was lost, and marks it as ours."""
        state, stand_in = self._state(), self._told()
        kept = mlflow.MlflowClient(stand_in.uri, stand_in.uri)
        for name, own in [(name, own) for name, own, doubtful in state["made"] if doubtful]:
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
                    is_known = each.model_id in self.known or "bundle.model" in each.tags
                    if each.source_run_id == run_id and not is_known:
                        client.set_logged_model_tags(each.model_id, {"bundle.model": own})
            elif name == "create_model_version":
                registered, _, number = own.rpartition("/")
                source = kept.get_model_version(registered, number).source
                source = ID.sub(lambda found: state["ids"].get(found.group(), found.group()), source)
                for version in client.search_model_versions(f"name = '{registered}'"):
                    if version.source == source and "bundle.version" not in version.tags:
                        client.set_model_version_tag(registered, str(version.version), "bundle.version", own)

    def _state(self) -> dict[str, Any]:
        """What was made here; its ids there; how far journals have been read; whether anything was delivered."""
        file = self.folder / "state.json"
        state: dict[str, Any] = {"ids": {}, "read": {}, "made": [], "delivered": False}
        return state | json.loads(file.read_text()) if file.exists() else state

    def _write(self, state: Mapping[str, Any]) -> None:
        cache.write(self.folder / "state.json", json.dumps(state))


def translated(arguments: dict[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of a call with other ids, wherever they stand in them; and other numbers of versions."""
    if not ids:
        return arguments
    raw = pickle.dumps(arguments)
    for old, new in ids.items():
        if ID.fullmatch(old):  # as long as the new one: the form of the bytes stays
            raw = raw.replace(old.encode(), new.encode())
    changed: dict[str, Any] = pickle.loads(raw)
    version = ids.get(f"{changed.get('name')}/{changed.get('version')}")
    return changed | {"version": version.rpartition("/")[2]} if version else changed


def id_of(answer: Any) -> str:
    """The id of what was made: a run, a logged model, a version (`NAME/NUMBER`); empty for anything else."""
    if hasattr(answer, "info"):
        return str(answer.info.run_id)
    if hasattr(answer, "version"):
        return f"{answer.name}/{answer.version}"
    return str(getattr(answer, "model_id", ""))


def _reversed(ids: Mapping[str, str]) -> dict[str, str]:
    return {there: here for here, there in ids.items()}


def _entries(path: Path, read: dict[str, int] | None = None) -> Iterable[Any]:
    """What was written to a file of notes; from where, and up to where, `read` says."""
    read = {} if read is None else read
    with path.open("rb") as file:
        file.seek(read.get(path.name, 0))
        while True:
            try:
                entry = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):  # another process is at writing it
                return
            read[path.name] = file.tell()
            yield entry
