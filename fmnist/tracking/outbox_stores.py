"""MLflow's own ways to a tracking server, each call of which goes through the outbox of the command."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Protocol

import mlflow
from mlflow.store.artifact import artifact_repository_registry as repositories
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.store.tracking.rest_store import RestStore as TrackingStore
from mlflow.tracking._model_registry import utils as registries
from mlflow.tracking._tracking_service import utils as services
from mlflow.utils.credentials import get_default_host_creds

FIRST_VERSION = 1_000_000  # of those that no server has counted
WRITES = {
    "tracking": {
        *("create_run", "update_run_info", "log_batch", "log_metric", "log_param", "set_tag", "delete_tag"),
        *("log_inputs", "log_outputs", "record_logged_model", "create_logged_model", "log_logged_model_params"),
        *("finalize_logged_model", "set_logged_model_tags", "delete_logged_model_tag"),
    },
    "registry": {
        *("create_registered_model", "update_registered_model", "set_registered_model_tag"),
        *("create_model_version", "update_model_version", "set_model_version_tag", "set_registered_model_alias"),
    },
}
READS = {  # that a stand-in can answer; who has an alias, or which versions there are, only the server knows
    "tracking": {
        *("search_experiments", "get_experiment", "get_experiment_by_name", "get_run", "search_runs"),
        *("get_metric_history", "get_logged_model", "search_logged_models"),
    },
    "registry": {"get_registered_model", "get_model_version", "get_model_version_download_uri"},
}
ID = re.compile(r"(?<![0-9a-f])(?:m-)?[0-9a-f]{32}(?![0-9a-f])")


class Outbox(Protocol):
    """What calls go through; `fmnist.tracking.outbox` has it."""

    def call(self, kind: str, name: str, ask: Callable[..., Any], arguments: dict[str, Any]) -> Any: ...
    def send(self, of: str, below: str, local: str, path: str | None, upload: Callable[[], None]) -> None: ...
    def fetch(self, of: str, below: str, name: str, arguments: Any, ask: Callable[[], Any]) -> Any: ...
    def there(self, of: str) -> str: ...


def register(current: Callable[[], Outbox | None]) -> None:
    """Has MLflow go through an outbox, as long as there is one, wherever it would go to a server."""
    tracking, registry = _through("tracking", TrackingStore, current), _through("registry", RegistryStore, current)

    def repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
        return Artifacts(artifact_uri, tracking_uri, registry_uri, current=current)

    for scheme in ("http", "https"):
        services._tracking_store_registry.register(
            scheme, lambda store_uri, **_: tracking(functools.partial(get_default_host_creds, store_uri))
        )
        registries._get_store_registry().register(
            scheme, lambda store_uri, **_: registry(functools.partial(get_default_host_creds, store_uri))
        )
    services._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    registries._get_store_registry()._get_store_with_resolved_uri.cache_clear()
    repositories._artifact_repository_registry.register("mlflow-artifacts", repository)


def _through(kind: str, store: type[Any], current: Callable[[], Outbox | None]) -> type[Any]:
    """A store's class, of which an outbox sees the calls that write, or that it can answer."""

    def method(name: str) -> Callable[..., Any]:
        own = getattr(store, name)
        signature = inspect.signature(own)

        @functools.wraps(own)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            outbox = current()
            if outbox is None:
                return own(self, *args, **kwargs)
            _, *arguments = signature.bind(self, *args, **kwargs).arguments.items()
            return outbox.call(kind, name, functools.partial(own, self), dict(arguments))

        return call

    names = [name for name in dir(store) if name in WRITES[kind] | READS[kind]]
    return type(store.__name__, (store,), {name: method(name) for name in names})


class Artifacts(MlflowArtifactsRepository):  # type: ignore[misc]  # MLflow is untyped
    """Artifacts of a run or a logged model, on the server or, while that is away, in the outbox."""

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None, registry_uri: str | None, *, current: Any
    ) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        found = ID.findall(artifact_uri)
        self._of = found[-1] if found else ""
        self._below = artifact_uri.rpartition(f"{self._of}/artifacts")[2].strip("/")
        # The outbox's own address, of what was made, or asked for, while the server was away.
        self._is_ours = artifact_uri.startswith(f"mlflow-artifacts:/{self._of}/artifacts")
        self._current = current

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        def upload() -> None:
            if self._is_ours:
                self._there().log_artifact(local_file, artifact_path)
            else:
                MlflowArtifactsRepository.log_artifact(self, local_file, artifact_path)

        outbox = self._current()
        if outbox and self._of:
            outbox.send(self._of, self._below, local_file, artifact_path, upload)
        else:
            upload()

    def list_artifacts(self, path: str | None = None) -> Any:
        return self._fetch("list_artifacts", path)

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> Any:
        return self._fetch("download_artifacts", artifact_path, dst_path)

    def _fetch(self, name: str, *arguments: Any) -> Any:
        def ask() -> Any:
            if self._is_ours:
                return getattr(self._there(), name)(*arguments)
            return getattr(MlflowArtifactsRepository, name)(self, *arguments)

        outbox = self._current()
        return outbox.fetch(self._of, self._below, name, arguments, ask) if outbox and self._of else ask()

    def _there(self) -> Any:
        """The artifacts where the server has them."""
        client, outbox = mlflow.MlflowClient(self.tracking_uri), self._current()
        there = outbox.there(self._of) if outbox else self._of
        if there.startswith("m-"):
            root = client.get_logged_model(there).artifact_location
        else:
            root = client.get_run(there).info.artifact_uri
        return repositories.get_artifact_repository(f"{root}/{self._below}".rstrip("/"), self.tracking_uri)
