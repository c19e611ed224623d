"""A real `mlflow run . -e benchmark`, read back from many sides, and how its logging ends where it can't go on."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from made import made_grid

from fmnist import machine, processes
from fmnist.benchmark import cell as measuring
from fmnist.benchmark import grid as grids
from fmnist.benchmark import ratios, verdict
from fmnist.options import parse
from fmnist.settings import Benchmark

HAS_GPU = machine.has_driver()
SMALL = {
    "models": "mlp",
    "dataset": "synthetic",
    "images": "500",
    "devices": "cpu,gpu",
    "batch_parts": "2",
    "epochs": "2",
    "warmup": "1",
    "rounds": "1",
}
HOUR = 3600


# One `mlflow run . -e benchmark`, after one that was broken off, read back from many sides:


@pytest.fixture(scope="module")
def store(new_store):
    """A store whose commands measure cells in processes whose clock somebody has set."""
    store = new_store()
    (store.folder / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'entry_points.workers.cell' in sys.orig_argv:\n"
        f"    real = time.time\n    time.time = lambda: real() + {HOUR}\n"
    )
    store.environment["PYTHONPATH"] += f"{os.pathsep}{store.folder}"
    return store


@pytest.fixture(scope="module")
def broken_off(store):
    """The nested run of the one cell that was measured before SIGTERM."""
    arguments = [text for name, value in SMALL.items() for text in (f"--{name}", value)]
    command = [sys.executable, "-m", "entry_points.benchmark", *arguments]
    with subprocess.Popen(
        command, cwd=store.folder, env=store.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if "measurement 1/" in line:
                os.kill(process.pid, signal.SIGTERM)
                break
        process.stderr.read()
    runs = store.client.search_runs([store.experiment])
    assert {run.info.status for run in runs} == {"KILLED", "FINISHED"}
    (measured,) = [run for run in runs if run.info.status == "FINISHED"]
    return measured


@pytest.fixture(scope="module")
def result(store, broken_off):
    done = store.mlflow_run("benchmark", **SMALL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cells(store, result):
    """The nested runs of the cells, by what they measured."""
    found = store.client.search_runs(
        [store.experiment], filter_string=f"tags.mlflow.parentRunId = '{result['run_id']}'"
    )
    return {
        (run.data.params["model"], run.data.params["device"], run.data.params["trainer"]): run for run in found
    }


@pytest.fixture(scope="module")
def report(store, result):
    return store.folder / "artifacts" / result["run_id"] / "artifacts"


def test_every_cell_is_a_nested_run_with_the_same_names_of_parameters_and_metrics(cells):
    assert set(cells) == {
        *(("op", device, "none") for device in ("cpu", "gpu")),
        *(("mlp", device, trainer) for device in ("cpu", "gpu") for trainer in ("compiled", "fit")),
    }
    assert len({tuple(sorted(run.data.params)) for run in cells.values()}) == 1
    compiled, fit = (cells["mlp", "cpu", trainer].data for trainer in ("compiled", "fit"))
    assert set(fit.metrics) - set(compiled.metrics) == {"input_wait_seconds"}  # compiled waits for nothing
    assert {"epoch_seconds", "latency_seconds_median", "images_per_second", "startup_seconds"} <= set(fit.metrics)


def test_the_same_command_goes_on_where_it_was_broken_off(store, broken_off, cells):
    again = cells["op", "cpu", "none"].data.metrics
    assert again["matmul_seconds_median"] == broken_off.data.metrics["matmul_seconds_median"]


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU's driver")
def test_a_device_that_is_not_there_is_a_cell_marked_skipped_and_nothing_else(cells, result):
    run = cells["mlp", "gpu", "compiled"]
    assert (run.data.tags["status"], run.info.status, run.data.metrics) == ("skipped", "FINISHED", {})
    assert "no GPU is visible" in run.data.tags["reason"]
    assert (result["measured"], result["skipped"], result["failed"]) == (3, 3, 0)


def test_every_epoch_is_logged_and_the_median_is_theirs(store, cells):
    run = cells["mlp", "cpu", "compiled"]
    history = store.client.get_metric_history(run.info.run_id, "epoch_seconds")
    assert len(history) == int(SMALL["epochs"])
    median = np.median([metric.value for metric in history])
    assert run.data.metrics["epoch_seconds_median"] == pytest.approx(median)
    assert run.data.metrics["images_per_second"] == pytest.approx(500 / median)


def test_start_up_is_timed_by_a_clock_that_nobody_sets(cells):
    assert 0 < cells["mlp", "cpu", "compiled"].data.metrics["import_seconds"] < HOUR


def test_a_cell_says_what_it_was_computed_under_and_the_verdict_what_differs(cells, report):
    under = {
        trainer: [cells["mlp", "cpu", trainer].data.tags[name] for name in grids.CONDITIONS]
        for trainer in ("compiled", "fit")
    }
    pool = str(max(machine.num_threads() // 2, 1))
    assert under == {
        "compiled": ["2", pool, "2", "True", "False", "False"],
        "fit": [
            "1",
            "auto",
            "auto",
            "False",
            str(HAS_GPU),
            "False",
        ],  # where a GPU is, Keras takes XLA for CPUs too
    }
    text = (report / "verdict.md").read_text()
    assert "batch_parts: 2 / 1; " in text
    assert "deterministic: True / False" in text
    assert "TF32 is off everywhere" in text


def test_what_is_not_known_is_unknown_and_never_nought(cells, report):
    run = cells["mlp", "cpu", "compiled"]
    assert run.data.tags["unknown.device_memory_bytes"] == "unknown"
    assert "device_memory_bytes" not in run.data.metrics
    rows = list(csv.DictReader(io.StringIO((report / "benchmark.csv").read_text())))
    assert {row["device_memory_bytes"] for row in rows if row["device"] == "cpu"} == {"unknown"}
    assert run.data.tags["machine.cpu"] == run.data.tags["device.name"] == machine.cpu_name()
    assert run.data.tags["device.threads"] == str(machine.num_threads())
    assert run.data.tags["commit"] == machine.commit()


def test_the_parent_has_table_plots_and_verdict(store, result, report):
    expected = {"benchmark.csv", "benchmark.json", "verdict.md", "plots/epoch_times.png", "plots/speedups.png"}
    assert expected <= store.artifacts(result["run_id"])
    (ratio,) = result["times_as_fast"]
    text = (report / "verdict.md").read_text()
    assert f"**{ratio['median']:.2f}x** ({ratio['min']:.2f}-{ratio['max']:.2f}, 1)" in text
    assert machine.cpu_name() in text
    assert store.client.get_run(result["run_id"]).data.tags["mlflow.note.content"] == text


def test_a_report_read_back_is_put_beside_with_what_differs(report):
    rows = verdict.read(str(report / "benchmark.json"))
    elsewhere = [row | {"environment": json.loads(json.dumps(row["environment"]))} for row in rows]
    for row in elsewhere:
        row["environment"]["machine"]["cpu"] = "Another CPU"
    compiled = next(row for row in rows if row["trainer"] == "compiled" and row["device"] == "cpu")
    other = next(row for row in elsewhere if row["trainer"] == "compiled" and row["device"] == "cpu")
    assert ratios.ratio(compiled, other, "elsewhere").times_as_fast.median == 1
    assert ratios.differences(compiled, other) == [f"cpu: {machine.cpu_name()} / Another CPU"]
    assert ratios.differences(compiled, compiled) == []


def test_bad_input_is_refused_before_anything_heavy_is_imported(store):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['benchmark', '--dataset', 'synthetic', '--batch_sizes', '12001']\n"
        "try:\n    runpy.run_module('entry_points.benchmark', run_name='__main__')\n"
        "finally:\n    print({'tensorflow', 'keras', 'mlflow', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=store.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert len(done.stderr.splitlines()) == 1


# What is logged, and how it ends where it can't be:


@pytest.fixture
def tracked(store, monkeypatch):
    """MLflow in this process on the store."""
    import mlflow

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment)
    mlflow.set_tracking_uri(store.uri)
    yield store
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")])
def test_a_cells_run_and_its_parent_end_when_logging_is_broken_off(tracked, monkeypatch, error, status):
    import mlflow

    from fmnist.tracking import benchmark as log
    from fmnist.tracking import runs

    def broken(*_):
        raise error

    monkeypatch.setattr(mlflow, "log_dict", broken)
    grid = made_grid()
    cell = measuring.Cell("mlp", 1.0, "cpu", "jax", "fit", "float32", 32, "auto")
    measured = {"epoch_seconds": [1.0], "conditions": {}, "device_name": "a CPU"}
    with pytest.raises(error), runs.run(Benchmark(), "benchmark") as run_id:
        log.log_cell(cell, [measured], grid, None)
    assert mlflow.active_run() is None
    nested = tracked.client.search_runs([tracked.experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    assert [run.info.status for run in (tracked.client.get_run(run_id), *nested)] == [status] * 2


def test_what_was_measured_is_kept_until_it_is_logged(tracked, monkeypatch):
    from entry_points.benchmark import run_benchmark
    from fmnist.tracking import benchmark as log

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a cell on a GPU is skipped, which is soon measured
    settings = parse(Benchmark, {"dataset": "synthetic", "level": "op", "devices": "gpu", "rounds": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(log, "log_benchmark", lambda *_: (_ for _ in ()).throw(OSError("the store is away")))
        with pytest.raises(OSError, match="the store is away"):
            run_benchmark(settings)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "start", lambda *_, **__: pytest.fail("measured again"))
        assert run_benchmark(settings)["skipped"] == 1
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            run_benchmark(settings)  # all is logged, and so nothing is kept
