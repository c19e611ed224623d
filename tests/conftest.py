"""What tests share: a cache of their own, a fresh MLflow store, and the real `mlflow run`."""

import io
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fmnist.data import Splits
    from fmnist.training import Epoch, Plan, Trained

ROOT = Path(__file__).parent.parent
LONGEST = (
    *("test_tracking", "test_search", "test_main", "test_training", "test_docs", "test_pages", "test_team"),
    *("test_tracking_server", "test_reproduce", "test_bundles", "test_benchmark_run", "test_promotion"),
    *("test_report_page", "test_doctor", "test_studies", "test_wardrobe", "test_demo"),
)
OFFICIAL_FILES = os.environ.get("FMNIST_DATA_DIR", "")  # before the fixture below hides it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no worker of pytest-xdist begins one when others end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that no other run of the tests has touched, and no data folder from outside."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMNIST_CACHE_DIR", str(folder))
        patch.delenv("FMNIST_DATA_DIR", raising=False)
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        patch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # four processes more, for judges
        patch.setenv("MLFLOW_WORKERS", "1")  # of a server, in place of 4, each of which imports all of MLflow
        # One seed's training compiles to what another's does: half of the time of these tests.
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("jax")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield folder


@pytest.fixture(scope="session", autouse=True)
def hangs_up() -> None:
    """What the tests start ends when it is hung up on, even if nohup, which is handed down, started them."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    """This process keeps its threads: many files share it, and TensorFlow fixes them at the first array."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmnist.training.set_batch_parts", lambda *_: None)
        yield


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


def fit_and_test(
    plan: "Plan", splits: "Splits", on_epoch: Callable[["Epoch"], None] = lambda _: None, **more: Any
) -> "Trained":
    """What `fmnist.training.fit` trains, tested too."""
    from fmnist import training

    return training.tested(training.fit(plan, splits, on_epoch, **more), splits)


def run_here(
    folder: Path, entry_point: str, parameters: Mapping[str, object], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs an entry point as `python -m` does, in this process: one of its own spends most of its time on imports.

    MLflow is on the store that the environment names.
    """
    import mlflow

    pairs = [text for name, value in parameters.items() for text in ("-P", f"{name}={value}")]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", [entry_point, *pairs])
        patch.setattr(signal, "signal", lambda *_: None)  # not those of the tests
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        for name, value in environment.items():
            patch.setenv(name, value)
        mlflow.set_tracking_uri(environment["MLFLOW_TRACKING_URI"])
        try:
            runpy.run_path(str(ROOT / "entry_points" / f"{entry_point}.py"), run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            mlflow.set_tracking_uri(None)
    return subprocess.CompletedProcess([entry_point, *pairs], code, out.getvalue(), err.getvalue())


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

    def here(self, entry_point: str, **parameters: object) -> subprocess.CompletedProcess[str]:
        """Runs an entry point in this process."""
        names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
        return run_here(self.folder, entry_point, parameters, {name: self.environment[name] for name in names})

    def artifacts(self, run_id: str) -> set[str]:
        """Paths of all artifacts of a run."""
        root = self.folder / "artifacts" / run_id / "artifacts"
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def new_store(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    """Makes a fresh store."""
    return lambda: Store(tmp_path_factory.mktemp("run"), migrated_store)


@contextmanager
def tracked_in(store: Store) -> Iterator[None]:
    """MLflow in this process on a store, its new runs in the experiment `tests`."""
    import mlflow

    mlflow.set_tracking_uri(store.uri)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment)
            yield
    finally:
        mlflow.set_tracking_uri(None)


def register_foreign(store: Store, name: str, *, noise: float, known: bool = True) -> None:
    """Registers a model made with mlflow.pyfunc alone, of mean images of `synthetic`, which noise spoils.

    Where it is known what it was trained on, its run and its version say so as those of this project do.
    """
    import mlflow
    import numpy as np

    from fmnist import data
    from fmnist.settings import Validation

    splits = data.load("synthetic", data_dir="", validation=Validation(2000), seed=0)
    means = [splits.train.images[splits.train.labels == label].mean(axis=0) for label in range(10)]
    file = store.folder / "means.npy"
    np.save(file, np.array(means) + np.random.default_rng(0).normal(0, noise, (10, 28, 28)))
    float32 = np.dtype(np.float32)
    signature = mlflow.models.ModelSignature(
        inputs=mlflow.types.Schema([mlflow.types.TensorSpec(float32, (-1, 28, 28))]),
        outputs=mlflow.types.Schema([mlflow.types.TensorSpec(float32, (-1, 10))]),
    )
    with tracked_in(store), mlflow.start_run(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow would like type hints and an example of an input
        if known:
            mlflow.log_params({"dataset": "synthetic", "data_dir": "", "validation": "2000", "seed": "0"})
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(ROOT / "tests" / "foreign_model.py"),
            artifacts={"means": str(file)},
            signature=signature,
            pip_requirements=["mlflow", "numpy"],
        )
        tags = {"dataset": "synthetic", "dataset.digest": splits.manifest["digest"]} if known else {}
        mlflow.register_model(logged.model_uri, name, tags=tags)


def draw_photographs(folder: Path, *, count: int = 6) -> Path:
    """Photographs of trousers and of boxes, in folders that name them: light ones and dark ones on a wall."""
    shapes = {
        "Trouser": [(30, 18), (60, 18), (64, 105), (50, 105), (45, 45), (40, 105), (26, 105)],
        "my box": [(20, 40), (70, 40), (70, 90), (20, 90)],
    }
    from PIL import Image, ImageDraw

    for name, corners in shapes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (90, 120), (210, 200, 180))
            moved = [(x + number % 5, y - number % 3) for x, y in corners]
            ImageDraw.Draw(picture).polygon(moved, fill=(20 + 3 * number, 40, 90))
            picture.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def cpu() -> None:
    """TensorFlow on the CPU, in this process."""
    from fmnist import device

    device.select("cpu", "tensorflow")


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Postgres:
    """A PostgreSQL server on loopback."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._folder, self._as_user, self._programs = folder, [], programs
        if os.getuid() == 0:  # as root it refuses to run
            self._as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(folder, "nobody")
        # not one that the system may give to a client while the server is stopped
        self._port = next(port for port in random.sample(range(20_000, 30_000), 100) if _is_free(port))
        self.storage = f"postgresql://fmnist@127.0.0.1:{self._port}/postgres"
        made = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "fmnist", "-A", "trust", "--no-sync"]
        subprocess.run([*self._as_user, *made], check=True, capture_output=True, cwd=folder)
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        from fmnist.errors import FmnistError
        from fmnist.tuning import studies

        options = {"port": self._port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self._folder}
        options["fsync"] = "off"
        texts = [text for name, value in options.items() for text in ("-c", f"{name}={value}")]
        self._server = subprocess.Popen(
            [*self._as_user, str(self._programs / "postgres"), "-D", str(self._folder / "data"), *texts],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        give_up = time.monotonic() + 30
        while True:
            try:
                return studies.check_storage(self.storage)
            except FmnistError:
                assert time.monotonic() < give_up
                time.sleep(0.05)

    def stop(self) -> None:
        """Stops it, whoever is connected."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(timeout=30)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.environ["PATH"].split(os.pathsep))]
    programs = next((folder for folder in found if (folder / "initdb").exists()), None)
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed")
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    with TemporaryDirectory() as folder:  # pytest's own are closed to the user that the server runs as
        server = Postgres(programs, Path(folder))
        try:
            yield server
        finally:
            server.stop()
