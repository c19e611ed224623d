"""Measures a grid of cells, each in a process of its own.

The grid is gone through in rounds, there and back: what drifts on a noisy machine then shows up as spread,
and a ratio of two cells is taken within a round, between figures measured close together. What has been
measured is kept in the cache until it is logged, so that the same command goes on where it was broken off.
"""

import dataclasses
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fmnist import cache, machine, processes
from fmnist.benchmark.cell import OP, Cell, Method
from fmnist.data import Splits
from fmnist.device import Conditions, refuse_missing
from fmnist.errors import FmnistError
from fmnist.models import Model
from fmnist.options import AUTO
from fmnist.registry import MODELS
from fmnist.settings import DEVICES, PEERS, Benchmark
from fmnist.statistics import Spread, spread

Measurement = dict[str, Any]
Row = dict[str, Any]
CELL = tuple(field.name for field in dataclasses.fields(Cell))
CONDITIONS = tuple(f"device.{field.name}" for field in dataclasses.fields(Conditions))
_FIGURES = ("n", "mean", "median", "min", "max")


@dataclass(frozen=True)
class Grid:
    """What is to be measured, how, and where the figures will be from."""

    cells: tuple[Cell, ...]
    method: Method
    rounds: int
    environment: dict[str, Any]

    def digest(self) -> str:
        """Names the grid: the same command on the same machine, versions, code and data has the same."""
        return cache.digest(dataclasses.asdict(self))


def grid(settings: Benchmark, splits: Splits) -> Grid:
    """The cells that the settings ask for; imports nothing heavy.

    Raises:
        FmnistError: If there aren't so many images, a batch is larger than an epoch, or PyTorch isn't installed.
    """
    if set(PEERS) & set(settings.trainers):
        refuse_missing("cpu", "torch")
    available = len(splits.train) + len(splits.validation)
    images = settings.images or available
    if images > available:
        raise FmnistError(f"images: expected at most the {available} training images, received {images}")
    levels, devices, precisions = settings.level, settings.devices, settings.precisions
    ways = [
        ("torch" if trainer in PEERS else backend, trainer)
        for backend, trainer in product(settings.backends, settings.trainers)
    ]
    if AUTO in devices:
        devices = DEVICES if machine.has_driver() else ("cpu",)
    cells = []
    if "op" in levels or "epoch" in levels:  # whose rate the shares are of
        for device, backend, precision in product(
            devices, dict.fromkeys(backend for backend, _ in ways), precisions
        ):
            cells.append(Cell(OP, 1.0, device, backend, "none", precision, 0, AUTO))
    if levels != ("op",):
        for name, width, device, way in product(settings.models, settings.widths, devices, ways):
            model: Model = MODELS[name]
            backend, trainer = way
            for precision, size in product(precisions, settings.batch_sizes):
                batch_size = size or model.recipe.batch_size
                has_parts = (trainer, backend) == ("compiled", "tensorflow")
                for parts in settings.batch_parts if has_parts else (None,):
                    asked = str(parts or AUTO)
                    cells.append(Cell(name, width, device, backend, trainer, precision, batch_size, asked))
    largest = max(cell.batch_size for cell in cells)
    if largest > images:
        raise FmnistError(f"batch_sizes: expected at most the {images} images of an epoch, received {largest}")
    method = Method(
        levels=levels,
        epochs=settings.epochs,
        warmup=settings.warmup,
        images=images,
        dataset=settings.dataset,
        data_dir=settings.data_dir,
        seed=settings.seed,
    )
    environment = machine.environment() | {"dataset": splits.manifest["digest"]}
    return Grid(tuple(dict.fromkeys(cells)), method, settings.rounds, environment)


def run(grid: Grid, on_cell: Callable[[Cell, list[Measurement]], None]) -> list[Row]:
    """Measures all cells in all rounds, or takes what an interrupted run has measured; gives a row a cell.

    Args:
        grid: What to measure.
        on_cell: Is told after each measurement, with all measurements of the cell so far.
    """
    measurements: dict[Cell, list[Measurement]] = {cell: [] for cell in grid.cells}
    for number, cell in _there_and_back(grid):
        so_far = measurements[cell]
        if any({"skipped", "failed"} & set(each) for each in so_far):
            continue  # it would be no different
        kept = _kept_file(grid, number, cell)
        so_far.append(json.loads(kept.read_text()) if kept.exists() else _measure(cell, grid, kept))
        on_cell(cell, so_far)
    rows = [sum_up(cell, measurements[cell], grid) for cell in grid.cells]
    rates = {_place(each): each["matmul_flops_per_second"] for each in rows if each["model"] == OP}
    for each in rows:
        rate, achieved = rates.get(_place(each)), each["training_flops_per_second"]
        each["share_of_matmul"] = achieved / rate if rate and achieved else None
    return rows


def forget(grid: Grid) -> None:
    """Drops what is kept of a grid's measurements, once all of it is logged."""
    shutil.rmtree(_kept_file(grid, 0, grid.cells[0]).parent, ignore_errors=True)


def sum_up(cell: Cell, measurements: list[Measurement], grid: Grid) -> Row:
    """One cell's figures over its measured rounds, the same names whatever the cell; None is unknown."""
    measured = [each for each in measurements if "conditions" in each]
    row: Row = dataclasses.asdict(cell) | {
        "images": grid.method.images,
        "dataset": grid.environment["dataset"],
        "commit": grid.environment["commit"],
        "status": "measured",
        "reason": "",
        "rounds": len(measured),
    }
    for number, each in enumerate(measurements, start=1):
        for status in {"skipped", "failed"} & set(each):
            row |= {"status": status, "reason": each[status] + (f" (in round {number})" if number > 1 else "")}
    conditions = measured[0]["conditions"] if measured else {}
    row |= {name: conditions.get(name.removeprefix("device.")) for name in CONDITIONS}

    def all_of(name: str) -> list[float]:
        """The values of all rounds that are known, lists joined."""
        values = [value for each in measured for value in _listed(each.get(name))]
        return [value for value in values if value is not None]

    def typical(name: str) -> float | None:
        values = all_of(name)
        return statistics.median(values) if values else None

    for name in (
        *("epoch_seconds", "latency_seconds", "inference_images_per_second"),
        *("matmul_seconds", "convolution_seconds"),
    ):
        known = dataclasses.asdict(spread(all_of(name))) if all_of(name) else {}
        row |= {f"{name}_{key}": known.get(key) for key in _FIGURES}
    cold = [typical(name) for name in ("import_seconds", "build_seconds", "compile_seconds")]
    row |= dict(zip(("import_seconds", "build_seconds", "compile_seconds"), cold, strict=True))
    row["startup_seconds"] = sum(each for each in cold if each is not None) if None not in cold else None
    for name in (
        *("num_parameters", "training_flops_per_image", "inference_flops_per_image"),
        *("input_wait_seconds", "power_watts"),
        *("load_before", "load_after", "cpu_mhz_before", "cpu_mhz_after"),
    ):
        row[name] = typical(name)
    for name in ("host_memory_bytes", "device_memory_bytes"):
        row[name] = max(all_of(name), default=None)

    def rate(count: float | None, seconds: float | None) -> float | None:
        return count / seconds if count and seconds else None

    for name in ("matmul", "convolution"):
        row[f"{name}_flops_per_second"] = rate(typical(f"{name}_flops"), row[f"{name}_seconds_median"])
    row["images_per_second"] = rate(grid.method.images, row["epoch_seconds_median"])
    flops = (row["training_flops_per_image"] or 0) * grid.method.images
    row["training_flops_per_second"] = rate(flops, row["epoch_seconds_median"])
    row["share_of_matmul"] = None  # known once all cells are
    row["warmup_epochs"] = max((len(_listed(each.get("warmup_seconds"))) for each in measured), default=0)
    agreed = all_of("warmup_agreed")
    row["warmup_agreed"] = all(agreed) if agreed else None
    row["epoch_seconds_by_round"] = [each["epoch_seconds"] for each in measured if "epoch_seconds" in each]
    row["environment"] = grid.environment
    return row


def figures(row: Row, name: str) -> Spread | None:
    """The spread of what a row sums up under a name; None if it wasn't measured."""
    known = {key: row[f"{name}_{key}"] for key in _FIGURES}
    return Spread(**known) if known["n"] else None


def _there_and_back(grid: Grid) -> Iterator[tuple[int, Cell]]:
    for number in range(grid.rounds):
        for cell in grid.cells if number % 2 == 0 else reversed(grid.cells):
            yield number, cell


def _measure(cell: Cell, grid: Grid, keep: Path) -> Measurement:
    """Measures a cell in a process of its own, and keeps the result."""
    fields = {"cell": dataclasses.asdict(cell), "method": dataclasses.asdict(grid.method)}
    request = json.dumps(fields | {"started": time.monotonic()})
    child = processes.start("entry_points.workers.cell", request, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        result, messages = child.communicate()
    finally:
        child.kill()
    if child.returncode != 0:
        return {"failed": processes.ending(child.returncode, messages)}
    measurement: Measurement = json.loads(result.splitlines()[-1])
    cache.write(keep, json.dumps(measurement))
    return measurement


def _kept_file(grid: Grid, number: int, cell: Cell) -> Path:
    """Where the measurement of a cell in a round is kept."""
    name = cache.digest([number, dataclasses.astuple(cell)])
    return cache.folder() / "benchmarks" / grid.digest() / f"{name}.json"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _place(row: Row) -> tuple[str, str, str]:
    return row["device"], row["backend"], row["precision"]
