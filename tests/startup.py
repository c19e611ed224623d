"""Measures what is not training: start-up, refusals, and everything around the epochs of a run.

`python tests/startup.py [--runs N] [--against CHECKOUT]`: prints tables, and JSON last; not collected by pytest.
With another checkout, the two are measured in turns. What `./run train` takes is the script's time; `mlflow run`
puts MLflow's launcher before it.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import click

ROOT = Path(__file__).parent.parent
TRAIN = ["dataset=synthetic", "epochs=3", "device=cpu"]
SCRIPT = [sys.executable, "-m", "entry_points.train"]
LAUNCHER = [sys.executable, "-m", "mlflow", "run", ".", "-e", "train", "--env-manager", "local"]
CASES = {
    "train --help": [*SCRIPT, "--help"],
    "refused parameter": [*SCRIPT, "--model", "lenett"],
    "train, without its epochs": [*SCRIPT, *(word for pair in TRAIN for word in ("--" + pair).split("="))],
    "the same by mlflow run": [*LAUNCHER, *(word for pair in TRAIN for word in ("-P", pair))],
}
# Where a training's time goes: the functions of each part. What is called within another counts as its.
PARTS = [
    ("data", "fmnist.data", "load"),
    ("store", "fmnist.tracking.runs", "open_store"),
    ("epochs and compilation", "fmnist.training", "fit"),
    ("plots", "fmnist.tracking.runs", "log_figure"),
    ("plots", "fmnist.tracking.training", "log_figure"),
    ("plots", "fmnist.plots.training", "confusion_matrix"),
    ("plots", "fmnist.plots.training", "learning_curves"),
    ("plots", "fmnist.plots.training", "predictions"),
    ("model", "fmnist.tracking.training", "log_model"),
    ("registry", "fmnist.tracking.models", "register"),
]
LIBRARIES = ("mlflow", "keras", "tensorflow", "matplotlib", "scipy", "numpy")


def seconds(command: list[str], checkout: Path, folder: str) -> float:
    """Wall-clock seconds of a command, less those of its run's epochs."""
    store = f"sqlite:///{folder}/mlflow.db"
    environment = os.environ | {"PYTHONPATH": str(checkout), "MLFLOW_TRACKING_URI": store}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    start = perf_counter()
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    wall = perf_counter() - start
    results = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if not results:
        return wall
    from mlflow import MlflowClient

    epochs = MlflowClient(store).get_metric_history(json.loads(results[-1])["run_id"], "perf/epoch_seconds")
    return wall - sum(metric.value for metric in epochs)


def breakdown(folder: str) -> dict[str, float]:
    """Seconds of the parts of one training in a fresh process, and of what is left."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    code = "import runpy; runpy.run_path('tests/startup.py')['trace']()"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts


def trace() -> None:
    """Trains in this process, and prints what the parts took."""
    import builtins
    import gc
    import importlib

    from fmnist import cli

    gc.set_threshold(cli.GARBAGE_THRESHOLD)
    begin = perf_counter()
    taken: dict[str, float] = {}
    depth = 0

    @contextmanager
    def timed(part):
        nonlocal depth
        depth += 1
        start = perf_counter()
        try:
            yield
        finally:
            depth -= 1
            if not depth:
                taken[part] = taken.get(part, 0) + perf_counter() - start

    original = builtins.__import__

    def importing(name, *arguments, **more):
        library = name.partition(".")[0]
        if library not in LIBRARIES:
            return original(name, *arguments, **more)
        with timed(f"import {library}"):
            return original(name, *arguments, **more)

    builtins.__import__ = importing
    from entry_points import train
    from fmnist.settings import Train

    for part, name, function in PARTS:
        module = importlib.import_module(name)
        setattr(module, function, timed(part)(getattr(module, function)))
    train.train(Train(dataset="synthetic", epochs=3, device="cpu"))
    taken["the rest"] = perf_counter() - begin - sum(taken.values())
    print(json.dumps(taken))


@click.command()
@click.option("--runs", default=5)
@click.option("--against", type=Path, help="another checkout, measured in turns")
def main(runs: int, against: Path | None) -> None:
    checkouts = {"here": ROOT} | ({"there": against.resolve()} if against else {})
    results: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        print(f"seconds: median (min-max), {runs} runs after one unmeasured; Python {platform.python_version()}")
        for name, command in CASES.items():
            times: dict[str, list[float]] = {key: [] for key in checkouts}
            for number in range(runs + 1):  # the first compiles bytecode and makes the store
                for key, checkout in checkouts.items():
                    (Path(folder) / key).mkdir(exist_ok=True)
                    taken = seconds(command, checkout, f"{folder}/{key}")
                    times[key] += [taken] if number else []
            results[name] = {
                key: {"median": statistics.median(each), "min": min(each), "max": max(each)}
                for key, each in times.items()
            }
            texts = [
                f"{key} {figures['median']:.2f} ({figures['min']:.2f}-{figures['max']:.2f})"
                for key, figures in results[name].items()
            ]
            if against:
                ratios = [there / here for here, there in zip(times["here"], times["there"], strict=True)]
                texts.append(
                    f"{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f}-{max(ratios):.2f})"
                )
            print(f"{name:28}{'  '.join(texts)}", flush=True)
        parts = [breakdown(f"{folder}/here") for _ in range(runs)]
    results["breakdown"] = {
        name: {"median": statistics.median([each[name] for each in parts])} for name in parts[0]
    }
    for name, figures in results["breakdown"].items():
        print(f"  {name:26}{figures['median']:.2f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
