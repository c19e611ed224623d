"""Measures a served model version side by side with Keras's stock flavour.

`python tests/serving_speed.py --help`; not collected by pytest. Three servers, each by `mlflow models serve
--env-manager local`: the version as the project logs it, the same model as MLflow's Keras flavour logs it, and a
model that does nothing, which is what MLflow takes by itself. They are asked in turns. Prints a table, and JSON
last.
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from time import perf_counter, process_time

import psutil

from fmnist import machine

NUM_CLIENTS = 8
START_SECONDS = 120
HEADERS = {"Content-Type": "application/json"}
NOTHING = """
class Nothing:
    def predict(self, model_input):
        return len(model_input)

def _load_pyfunc(path):
    return Nothing()
"""


def log_models(model: str, folder: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Logs what is to be served; gives the folders of the versions, and the seconds that logging took."""
    from fmnist import device

    device.select("cpu", "tensorflow")
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    from fmnist import serving, synthetic
    from fmnist.models import MODELS

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("speed", artifact_location=str(folder / "artifacts"))
    keras_model = MODELS[model].build(MODELS[model].hyperparameters(""), precision="float32", seed=0)
    names = tuple(f"class {number}" for number in range(10))
    images = synthetic.draw()[0][:256]
    seconds: dict[str, float] = {}
    float32 = np.dtype(np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(float32, (-1, 28, 28))]), Schema([TensorSpec(float32, (-1, 10))])
    )
    keras_model.predict_on_batch(images)  # as after a training, TensorFlow has started
    with mlflow.start_run(experiment_id=mlflow.get_experiment_by_name("speed").experiment_id):
        start = perf_counter()
        stock = mlflow.keras.log_model(
            keras_model, name="stock", signature=signature, pip_requirements=["mlflow", "keras", "tensorflow-cpu"]
        )
        seconds["stock"], start = perf_counter() - start, perf_counter()
        logged = serving.log_model(
            keras_model, name="ours", class_names=names, check_images=images, params={}, metadata={}
        )
        seconds["ours"] = perf_counter() - start
    print(f"served by {logged.tags}")
    (folder / "serves_nothing.py").write_text(NOTHING)
    mlflow.pyfunc.save_model(
        str(folder / "nothing"),
        loader_module="serves_nothing",
        code_paths=[str(folder / "serves_nothing.py")],
        pip_requirements=["mlflow"],
    )
    uris = {"ours": logged.model_uri, "stock": stock.model_uri}
    paths = {
        name: mlflow.artifacts.download_artifacts(uri, dst_path=str(folder / name)) for name, uri in uris.items()
    }
    return paths | {"MLflow alone": str(folder / "nothing")}, seconds


class Server:
    """A server that answers."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, start_seconds: float) -> None:
        self.process, self.port, self.start_seconds = process, port, start_seconds

    def processes(self) -> list[psutil.Process]:
        """Those that serve; without the command line, which waits for them and is MLflow's own."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def mebibytes(self) -> float:
        """The resident memory of the serving processes."""
        return sum(each.memory_info().rss for each in self.processes()) / 2**20

    def cpu_seconds(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.processes())

    def ask(self, body: bytes, count: int) -> tuple[list[float], int]:
        """Seconds of each of so many requests over one connection, and how many failed."""
        connection, seconds, failed = HTTPConnection("127.0.0.1", self.port), [], 0
        for _ in range(count):
            start = perf_counter()
            try:
                connection.request("POST", "/invocations", body, HEADERS)
                answer = connection.getresponse()
                failed += not (answer.read() and answer.status == 200)
            except (OSError, HTTPException):
                failed += 1
                connection.close()
            seconds.append(perf_counter() - start)
        connection.close()
        return seconds, failed

    def load(self, body: bytes, count: int) -> dict[str, float]:
        """So many requests by eight clients at once."""
        failures: list[int] = []
        clients = [
            threading.Thread(target=lambda: failures.append(self.ask(body, count // NUM_CLIENTS)[1]))
            for _ in range(NUM_CLIENTS)
        ]
        cpu, own, start = self.cpu_seconds(), process_time(), perf_counter()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        seconds = perf_counter() - start
        return {
            "requests_per_second": count / seconds,
            "failed": sum(failures),
            "server_cpu_ms": 1e3 * (self.cpu_seconds() - cpu) / count,
            "client_cpu_ms": 1e3 * (process_time() - own) / count,
        }


@contextmanager
def served(path: str, workers: int) -> Iterator[Server]:
    """A server of a version, from its start to its end."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", path, "--env-manager", "local"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = perf_counter()
    process = subprocess.Popen(
        [*command, "--workers", str(workers), "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while True:
            try:
                connection = HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/ping")
                connection.getresponse().read()
                break
            except OSError:
                if process.poll() is not None or perf_counter() - start > START_SECONDS:
                    raise SystemExit(f"no server: {' '.join(command)}") from None
                time.sleep(0.02)
        yield Server(process, port, perf_counter() - start)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def measure(paths: dict[str, str], body: bytes, workers: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Start-up, latency, throughput and memory of each server, by round."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            with served(path, workers) as server:
                figures[name].append({"start_seconds": server.start_seconds})
    with ExitStack() as stack:
        servers = {name: stack.enter_context(served(path, workers)) for name, path in paths.items()}
        for index in range(rounds):
            for name, server in servers.items():
                few = 10 if name == "stock" else 1
                server.load(body, 64)
                seconds, failed = server.ask(body, 400 // few)
                entry = server.load(body, 4000 // few) | {"p50_ms": 1e3 * statistics.median(seconds)}
                entry["failed"] += failed
                figures[name][index] |= entry | {"mebibytes": server.mebibytes()}
    return figures


def soak(path: str, body: bytes, workers: int, count: int) -> dict[str, object]:
    """So many requests by eight clients, with the memory after each tenth of them."""
    with served(path, workers) as server:
        server.load(body, 800)
        memory, failed, start = [server.mebibytes()], 0, perf_counter()
        for _ in range(10):
            failed += int(server.load(body, count // 10)["failed"])
            memory.append(server.mebibytes())
        seconds = perf_counter() - start
    return {"requests": count, "failed": failed, "seconds": seconds, "mebibytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet", help="a model by name, with fresh weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="processes of each server")
    parser.add_argument("--soak", type=int, default=20_000, help="requests to our server alone; 0 for none")
    arguments = parser.parse_args()
    draw = random.Random(0)
    image = [[draw.randrange(256) for _ in range(28)] for _ in range(28)]
    body = json.dumps({"inputs": [image]}).encode()
    with tempfile.TemporaryDirectory() as folder:
        paths, log_seconds = log_models(arguments.model, Path(folder))
        figures = measure(paths, body, arguments.workers, arguments.rounds)
        soaked = soak(paths["ours"], body, arguments.workers, arguments.soak) if arguments.soak else None
    packages = ("mlflow", "keras", "tensorflow-cpu", "ai-edge-litert", "uvicorn")
    print(
        f"{arguments.model}, one image a request, {arguments.workers} worker(s), {NUM_CLIENTS} clients; "
        f"{machine.cpu_name()}, {machine.num_threads()} threads, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + (", with httptools and uvloop" if find_spec("httptools") and find_spec("uvloop") else "")
    )
    print(f"median (min-max) of {arguments.rounds} rounds")
    keys = list(figures["ours"][0])
    for name, rounds in figures.items():
        print(name)
        for key in keys:
            values = [each[key] for each in rounds]
            print(f"  {key:20} {statistics.median(values):9.2f} ({min(values):.2f}-{max(values):.2f})")
    ratios: dict[str, dict[str, float]] = {}
    for key, upside_down in {"p50_ms": 0, "requests_per_second": 1, "mebibytes": 0, "server_cpu_ms": 0}.items():
        pairs = zip(figures["stock"], figures["ours"], strict=True)
        each = [(ours[key] / stock[key]) if upside_down else (stock[key] / ours[key]) for stock, ours in pairs]
        ratios[key] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
        print(f"times better than stock, {key:20} {ratios[key]['median']:6.1f} ({min(each):.1f}-{max(each):.1f})")
    pairs = zip(figures["ours"], figures["MLflow alone"], strict=True)
    later = [ours["start_seconds"] - alone["start_seconds"] for ours, alone in pairs]
    ratios["seconds_later"] = {"median": statistics.median(later), "min": min(later), "max": max(later)}
    print("seconds later than MLflow alone: {median:.2f} ({min:.2f}-{max:.2f})".format(**ratios["seconds_later"]))
    print("seconds to log: ours {ours:.2f}, stock {stock:.2f}".format(**log_seconds))
    if soaked:
        print(f"soak: {soaked}")
    print(json.dumps({"figures": figures, "ratios": ratios, "log_seconds": log_seconds, "soak": soaked}))


if __name__ == "__main__":
    main()
