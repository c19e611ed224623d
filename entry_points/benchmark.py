"""`mlflow run . -e benchmark`: time training and inference, each cell in a process of its own."""

from typing import Any

from fmnist import benchmark, cli, data, measure, verdict
from fmnist.settings import Benchmark


def run_benchmark(settings: Benchmark) -> dict[str, Any]:
    others = verdict.read(settings.against) if settings.against else []
    splits = data.load(settings.dataset, data_dir=settings.data_dir, validation="1", seed=0)
    grid = benchmark.grid(settings, splits)
    from fmnist import tracking
    from fmnist.tracking import benchmarks

    run_ids: dict[measure.Cell, str] = {}
    with (
        tracking.run(settings) as run_id,
        cli.Progress("benchmark", len(grid.cells) * grid.rounds, unit="measurement") as progress,
    ):

        def on_cell(cell: measure.Cell, measurements: list[benchmark.Measurement]) -> None:
            run_ids[cell] = benchmarks.log_cell(cell, measurements, grid, run_ids.get(cell))
            progress.step(verdict.progress_text(cell, measurements, grid))

        rows = benchmark.run(grid, on_cell)
        result = benchmarks.log_benchmark(rows, others, grid)
    return {"run_id": run_id, **result}


if __name__ == "__main__":
    cli.main(Benchmark, run_benchmark)
