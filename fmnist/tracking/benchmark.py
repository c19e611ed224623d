"""What a benchmark logs: a nested run for each cell, and its table, plots and verdict."""

from typing import Any

import mlflow

from fmnist import machine
from fmnist.benchmark import grid as grids
from fmnist.benchmark import ratios, verdict
from fmnist.benchmark.cell import Cell
from fmnist.plots import benchmark as plots
from fmnist.tracking import colors, runs
from fmnist.tracking.runs import log_figure

STATUSES = ("measured", "skipped", "failed")


def log_cell(cell: Cell, measurements: list[grids.Measurement], grid: grids.Grid, run_id: str | None) -> str:
    """Logs the newest measurement of a benchmark's cell to its nested run; gives that run's id.

    All cells have the same names of parameters and metrics. A figure that isn't known is a tag `unknown.`.
    """
    row, newest = grids.sum_up(cell, measurements, grid), measurements[-1]
    name = None if run_id else verdict.name_of(row)
    with runs.ended():
        run_id = str(mlflow.start_run(run_id=run_id, run_name=name, nested=True).info.run_id)
        facts = grid.environment
        if name:
            mlflow.log_params({name: row[name] for name in (*grids.CELL, "images", "dataset")})
            tags = {f"machine.{name}": value for name, value in facts["machine"].items()}
            tags |= {f"version.{name}": value for name, value in facts["versions"].items()}
            tags |= colors.tag(row["model"], 2 * (row["device"] == "cpu") + (row["trainer"] != "compiled"))
            mlflow.set_tags(tags | {"commit": facts["commit"], "entry_point": "cell"})
        mlflow.set_tags({"status": row["status"], "reason": row["reason"]})
        if row["status"] == "measured":
            conditions = {name: row[name] for name in grids.CONDITIONS}
            conditions |= {"device.name": newest["device_name"], "device.threads": facts["machine"]["threads"]}
            mlflow.set_tags({name: machine.UNKNOWN if each is None else each for name, each in conditions.items()})
            values = {name: value for name, value in row.items() if name not in (*grids.CELL, *ratios.COMPARED)}
            numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
            mlflow.log_metrics(numbers, step=len(measurements))
            mlflow.set_tags({f"unknown.{name}": "unknown" for name, value in values.items() if value is None})
            before = sum(len(each.get("epoch_seconds", ())) for each in measurements[:-1])
            for number, seconds in enumerate(newest.get("epoch_seconds", ()), start=before + 1):
                mlflow.log_metric("epoch_seconds", seconds, step=number)
            mlflow.log_dict({"rounds": measurements}, "measurements.json")
    if "failed" in newest:
        mlflow.MlflowClient().set_terminated(run_id, "FAILED")
    return run_id


def log_benchmark(rows: list[grids.Row], others: list[grids.Row], grid: grids.Grid) -> dict[str, Any]:
    """Logs a benchmark's table, plots and verdict to the active run; gives the ratios as its result."""
    text = verdict.markdown(rows, others, grid)
    mlflow.log_text(text, "verdict.md")
    mlflow.set_tag("mlflow.note.content", text)
    mlflow.log_text(verdict.as_csv(rows), "benchmark.csv")
    mlflow.log_dict({"environment": grid.environment, "rows": rows}, "benchmark.json")
    timed = [row for row in rows if row["epoch_seconds_median"]]
    names = [verdict.name_of(row) for row in timed]
    if timed:
        times = [{key: row[f"epoch_seconds_{key}"] for key in ("median", "min", "max")} for row in timed]
        log_figure(plots.epoch_times(names, times), "plots/epoch_times.png")
        lines: dict[str, list[tuple[int, float]]] = {}
        for row in timed:
            label = verdict.name_of(row).replace(f", batch {row['batch_size']}", "")
            lines.setdefault(label, []).append((row["batch_size"], row["images_per_second"]))
        log_figure(plots.throughput(lines), "plots/throughput.png")
    found = ratios.ratios(rows)
    if found:
        labels = [f"{verdict.name_of(each.row)}\nagainst {each.label}" for each in found]
        figures = [(each.times_as_fast.median, each.times_as_fast.min, each.times_as_fast.max) for each in found]
        log_figure(plots.speedups(labels, figures), "plots/speedups.png")
    for number, crossing in enumerate(ratios.crossovers(rows), start=1):
        log_figure(plots.crossover(**crossing), f"plots/crossover-{number}.png")
    counts = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    mlflow.log_metrics({f"num_{status}": count for status, count in counts.items()})
    return {
        **counts,
        "epoch_seconds_median": {
            name: row["epoch_seconds_median"] for name, row in zip(names, timed, strict=True)
        },
        "times_as_fast": [
            {"cell": verdict.name_of(each.row), "as": verdict.name_of(each.reference)}
            | {key: getattr(each.times_as_fast, key) for key in ("median", "min", "max", "n")}
            for each in found
        ],
    }
