"""Measures what is not training: start-up, refusals, and everything around the epochs of a run.

Prints a table, and JSON last. `python tests/startup.py [runs]`; not collected by pytest.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parent.parent
CASES = {
    "train --help": ["--help"],
    "refused parameter": ["--model", "lenett"],
    "train run, without its epochs": ["--dataset", "synthetic", "--epochs", "3", "--device", "cpu"],
}


def seconds(arguments: list[str], folder: str) -> float:
    """Wall-clock seconds of the script, less those of its epochs as it logged them."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    command = [sys.executable, "-m", "entry_points.train", *arguments]
    start = perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall = perf_counter() - start
    if not done.stdout.startswith("{"):
        return wall
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    epochs = client.get_metric_history(json.loads(done.stdout)["run_id"], "perf/epoch_seconds")
    return wall - sum(metric.value for metric in epochs)


def main() -> None:
    num_runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in CASES.items():
            seconds(arguments, folder)  # a first run compiles bytecode and makes the store
            times = [seconds(arguments, folder) for _ in range(num_runs)]
            results[name] = {"median": statistics.median(times), "min": min(times), "max": max(times)}
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"seconds, {num_runs} runs after one unmeasured; {machine}")
    for name, figures in results.items():
        print(f"{name:32}" + "".join(f"{key:>8} {value:6.2f}" for key, value in figures.items()))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
