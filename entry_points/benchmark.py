"""`mlflow run . -e benchmark`: time training and inference, each cell in a process of its own."""

from typing import Any

from fmnist import cli, data
from fmnist.benchmark import grid as grids
from fmnist.benchmark import verdict
from fmnist.benchmark.cell import Cell
from fmnist.settings import Benchmark, Validation


def run_benchmark(settings: Benchmark) -> dict[str, Any]:
    others = verdict.read(settings.against) if settings.against else []
    splits = data.load(settings.dataset, data_dir=settings.data_dir, validation=Validation(1), seed=0)
    grid = grids.grid(settings, splits)
    from fmnist.tracking import benchmark as log
    from fmnist.tracking import runs

    run_ids: dict[Cell, str] = {}
    with (
        runs.run(settings, f"benchmark {', '.join(settings.models)}") as run_id,
        cli.Progress("benchmark", len(grid.cells) * grid.rounds, unit="measurement") as progress,
    ):

        def on_cell(cell: Cell, measurements: list[grids.Measurement]) -> None:
            run_ids[cell] = log.log_cell(cell, measurements, grid, run_ids.get(cell))
            progress.step(verdict.progress_text(cell, measurements, grid))

        rows = grids.run(grid, on_cell)
        result = log.log_benchmark(rows, others, grid)
        grids.forget(grid)
    return {"run_id": run_id, **result}


if __name__ == "__main__":
    cli.main(Benchmark, run_benchmark)
