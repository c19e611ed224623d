"""A row of a benchmark and a grid, made by hand."""

from fmnist import machine
from fmnist.benchmark import cell as measuring
from fmnist.benchmark import grid as grids


def made_row(**changes: object) -> grids.Row:
    """A row of a cell whose epochs took one, two, three seconds in one round and two, three, four in the next."""
    cell = measuring.Cell(**({
        "model": "cnn64",
        "width": 1.0,
        "device": "cpu",
        "backend": "jax",
        "trainer": "compiled",
        "precision": "float32",
        "batch_size": 128,
        "batch_parts": "auto",
    } | {name: value for name, value in changes.items() if name in grids.CELL}))  # fmt: skip
    factor = changes.get("factor", 1.0)
    conditions = {"batch_parts": 1, "intra_op_threads": "auto", "inter_op_threads": "auto"}
    measurements = [
        {
            "epoch_seconds": epoch_seconds,
            "warmup_seconds": [3.0],
            "warmup_agreed": measuring._agree([3.0]),
            "import_seconds": 2.0,
            "build_seconds": 1.0,
            "compile_seconds": 3.0,
            "training_flops_per_image": 10,
            "conditions": conditions | {"deterministic": None, "xla": True, "tf32": changes.get("tf32", False)},
        }
        for epoch_seconds in changes.get(
            "rounds", [[factor * (first + each) for each in (1, 2, 3)] for first in (0, 1)]
        )
    ]
    return grids.sum_up(cell, measurements, made_grid())


def made_grid() -> grids.Grid:
    method = measuring.Method(("epoch",), 3, 1, 1000, "synthetic", "", 0)
    environment = {"machine": machine.facts(), "versions": {"python": "3"}, "commit": "0" * 40, "dataset": "d"}
    return grids.Grid((), method, 2, environment)
