"""What a benchmark's rows are worth, for people: tables and a verdict in Markdown, CSV, a line of progress."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from fmnist.benchmark.cell import OP, Cell
from fmnist.benchmark.grid import CELL, Grid, Measurement, Row, sum_up
from fmnist.benchmark.ratios import COMPARED, ratio, ratios
from fmnist.errors import FmnistError
from fmnist.markdown import number, table
from fmnist.registry import MODELS

HEADS = (
    *("cell", "s an epoch", "images/s", "start-up s", "input wait s", "share of peak", "latency ms, batch 1"),
    *("inference images/s", "host MiB", "power W"),
)
# The classic claim: minutes to train cnn64 on a CPU and on a GPU. Source: one of the notebooks that this
# project replaces; it names neither epochs nor batch size, so those of the recipe are taken.
CLAIM_MODEL, CLAIM_CPU_MINUTES, CLAIM_GPU_MINUTES = "cnn64", 32, 9


def read(path: str) -> list[Row]:
    """The rows of another run's benchmark.json.

    Raises:
        FmnistError: If there is no such file, or it is something else.
    """
    try:
        rows = json.loads(Path(path).expanduser().read_text())["rows"]
        return [{name: row[name] for name in row} for row in rows if {*CELL, *COMPARED, "environment"} <= set(row)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FmnistError(f"against: expected the benchmark.json of another run at {path}; {error!r}") from None


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as a table; lists and records stay in the JSON."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "environment"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (row.get(name) for name in names)
        writer.writerow("unknown" if value is None else value for value in values)
    return file.getvalue()


def markdown(rows: Sequence[Row], others: Sequence[Row], grid: Grid) -> str:
    """What was found, in Markdown: the tables, the ratios with what they compare, and the claim."""
    facts, versions, method = grid.environment["machine"], grid.environment["versions"], grid.method
    about = ", ".join(f"{name} {value}" for name, value in versions.items())
    gpu = f"GPU {facts['gpu']}" + (f" (driver {facts['gpu_driver']})" if facts["gpu"] != "none" else "")
    lines = [
        f"{facts['cpu']} ({facts['instruction_sets']}), {facts['threads']} threads, {gpu}; {about}; "
        f"commit {_short(grid.environment['commit'])}; {method.dataset}, {method.images:,} images an epoch.",
        "",
        f"Seconds are medians (min-max, n) over {grid.rounds} rounds of {method.epochs} epochs after a warm-up "
        f"{'until two epochs agree to 5 %' if method.warmup is None else f'of {method.warmup}'}; validation and "
        "start-up are outside. Peak: the best matrix product of the same device and precision.",
        "",
        *table(
            HEADS,
            [
                (
                    name_of(each),
                    _spread(each, "epoch_seconds"),
                    number(each["images_per_second"], ",.0f"),
                    number(each["startup_seconds"], ".1f"),
                    number(
                        each["input_wait_seconds"],
                        ".2f",
                        none="none" if each["trainer"] == "compiled" else "unknown",
                    ),
                    number(each["share_of_matmul_peak"], ".0%"),
                    _spread(each, "latency_seconds", scale=1e3),
                    number(each["inference_images_per_second_median"], ",.0f"),
                    number(each["host_memory_bytes"] / 2**20 if each["host_memory_bytes"] else None, ",.0f"),
                    number(each["power_watts"], ".0f"),
                )
                for each in rows
                if each["status"] == "measured" and each["model"] != OP
            ],
        ),
    ]
    ops = [each for each in rows if each["status"] == "measured" and each["model"] == OP]
    if ops:
        heads = ("one operation on", "matrix product, ms", "GFLOP/s", "convolution, ms", "GFLOP/s")
        lines += ["", *table(heads, [_op_texts(each) for each in ops])]
    found = ratios(rows)
    found += [ratio(each, other, "the other run") for each in rows for other in others if _same_cell(each, other)]
    if found:
        compared = [
            (
                name_of(each.row),
                f"**{each.median:.2f}x** ({each.low:.2f}-{each.high:.2f})",
                f"{each.label}: {name_of(each.reference)}",
                "; ".join(each.differences) or "nothing else",
            )
            for each in found
        ]
        names = ("cell", "times as fast (least-greatest within a round)", "as", "what differs besides")
        lines += ["", *table(names, compared)]
    unmeasured = [each for each in rows if each["status"] != "measured"]
    for status, reason in dict.fromkeys((each["status"], each["reason"]) for each in unmeasured):
        named = "; ".join(name_of(each) for each in unmeasured if each["reason"] == reason)
        lines += ["", f"- {status}, {reason}: {named}"]
    for each in rows:
        if not each.get("warmup_agreed", True):
            lines += ["", f"- {name_of(each)}: epochs still differed by more than 5 % when the warm-up ended"]
    return "\n".join([*lines, "", *_claim(rows)]) + "\n"


def name_of(row: Row) -> str:
    """A row's cell in words."""
    width = "" if row["width"] == 1 else f" x{row['width']:g}"
    trained = "" if row["model"] == OP else f", {row['trainer']}, batch {row['batch_size']}"
    return f"{row['model']}{width} on {row['device']}, {row['backend']}{trained}, {row['precision']}"


def progress_text(cell: Cell, measurements: list[Measurement], grid: Grid) -> str:
    """A cell and what came of its newest measurement, in a line."""
    newest = sum_up(cell, measurements[-1:], grid)
    if newest["status"] != "measured":
        return f"{name_of(newest)}: {newest['status']}: {newest['reason']}"
    for name in ("epoch_seconds", "latency_seconds", "matmul_seconds"):
        if newest[f"{name}_median"] is not None:
            return f"{name_of(newest)}: {name} {_spread(newest, name)}"
    return name_of(newest)


def _claim(rows: Sequence[Row]) -> list[str]:
    own = [each for each in rows if each["model"] == CLAIM_MODEL and each["width"] == 1]
    timed = [each for each in own if each.get("epoch_seconds_median")]
    if not timed:
        return []
    epochs = MODELS[CLAIM_MODEL].recipe.epochs
    lines = [
        f"The claim: {CLAIM_MODEL} takes {CLAIM_CPU_MINUTES} min on a CPU and {CLAIM_GPU_MINUTES} min on a GPU "
        f"({CLAIM_CPU_MINUTES / CLAIM_GPU_MINUTES:.1f}x). It names neither epochs nor batch; taken here are "
        f"{epochs} epochs of {timed[0]['images']:,} images, with start-up:",
        "",
    ]
    for each in timed:
        seconds = epochs * each["epoch_seconds_median"] + (each["startup_seconds"] or 0)
        claimed = CLAIM_CPU_MINUTES if each["device"] == "cpu" else CLAIM_GPU_MINUTES
        lines.append(f"- {name_of(each)}: {seconds / 60:.1f} min (claimed: {claimed} min)")
    if not any(each["device"] == "gpu" for each in timed):
        lines.append("- GPU: not measured; on a machine with one: `mlflow run . -e benchmark -P models=cnn64`")
    return lines


def _short(commit: str) -> str:
    """A commit's first twelve digits, and whether files differed from it."""
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


def _same_cell(one: Row, other: Row) -> bool:
    """Whether two rows of different runs time the same training, whatever it ran on."""
    names = ("model", "width", "trainer", "batch_size")
    timed = one.get("epoch_seconds_median") and other.get("epoch_seconds_median")
    return bool(timed) and all(one[name] == other[name] for name in names)


def _op_texts(row: Row) -> list[str]:
    texts = [f"{row['device']}, {row['backend']}, {row['precision']}"]
    for op in ("matmul", "convolution"):
        texts += [_spread(row, f"{op}_seconds", scale=1e3), number(row[f"{op}_flops_per_second"] / 1e9, ",.0f")]
    return texts


def _spread(row: Row, name: str, *, scale: float = 1.0) -> str:
    if row[f"{name}_median"] is None:
        return "not measured"
    median, low, high = (scale * row[f"{name}_{key}"] for key in ("median", "min", "max"))
    digits = max(2 - math.floor(math.log10(median)), 0)
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f}, {row[f'{name}_n']})"
