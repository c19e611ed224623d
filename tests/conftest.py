"""What tests share: a cache of their own, a fresh MLflow store, and the real `mlflow run`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OFFICIAL_FILES = os.environ.get("FMNIST_DATA_DIR", "")  # before the fixture below hides it


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that no other run of the tests has touched, and no data folder from outside."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMNIST_CACHE_DIR", str(folder))
        patch.delenv("FMNIST_DATA_DIR", raising=False)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        yield folder


@pytest.fixture(scope="session")
def official_files() -> Path:
    """The folder of the official Fashion-MNIST files that FMNIST_DATA_DIR names."""
    if not OFFICIAL_FILES:
        pytest.skip("FMNIST_DATA_DIR names no folder with the official files")
    return Path(OFFICIAL_FILES)


@pytest.fixture(scope="session")
def migrated_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with its tables made, to be copied: making them takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Store:
    """An MLflow store of one's own, with an experiment `tests`, and the real commands on it."""

    def __init__(self, folder: Path, template: Path) -> None:
        from mlflow import MlflowClient

        self.folder = folder
        shutil.copy(template, folder / "mlflow.db")
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("tests", artifact_location=str(folder / "artifacts"))
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_EXPERIMENT_ID": self.experiment,
            "PYTHONPATH": str(ROOT),
        }

    def command(self, entry_point: str, **parameters: object) -> list[str]:
        """The command line of `mlflow run` for an entry point."""
        pairs = [text for name, value in parameters.items() for text in ("-P", f"{name}={value}")]
        command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry_point]
        return [*command, "--env-manager", "local", "--experiment-id", self.experiment, *pairs]

    def mlflow_run(self, entry_point: str, **parameters: object) -> subprocess.CompletedProcess[str]:
        """Runs an entry point through `mlflow run`."""
        return self.run(self.command(entry_point, **parameters))

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command with this store as its tracking store."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def artifacts(self, run_id: str) -> set[str]:
        """Paths of all artifacts of a run."""
        root = self.folder / "artifacts" / run_id / "artifacts"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def new_store(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    """Makes a fresh store."""
    return lambda: Store(tmp_path_factory.mktemp("run"), migrated_store)


@pytest.fixture(scope="session")
def cpu() -> None:
    """TensorFlow on the CPU, in this process."""
    from fmnist import device

    device.select("cpu", "tensorflow")
