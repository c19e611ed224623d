"""What a benchmark's rows are worth, for people: tables and a verdict in Markdown, CSV, a line of progress."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from fmnist.benchmark.cell import OP, Cell
from fmnist.benchmark.grid import Grid, Measurement, Row, figures, sum_up
from fmnist.benchmark.ratios import ratio, ratios
from fmnist.errors import FmnistError
from fmnist.markdown import median, number, table
from fmnist.options import AUTO
from fmnist.registry import MODELS

HEADS = (
    *("cell", "s an epoch", "images/s", "start-up s", "input wait s", "share of matmul", "latency ms, batch 1"),
    *("inference images/s", "host MiB", "power W"),
)
# The classic claim: minutes to train cnn64 on a CPU and on a GPU. Source: one of the notebooks that this
# project replaces; it names neither epochs nor batch size, so those of the recipe are taken.
CLAIM_MODEL, CLAIM_CPU_MINUTES, CLAIM_GPU_MINUTES = "cnn64", 32, 9


def read(path: str) -> list[Row]:
    """The rows of another run's benchmark.json.

    Raises:
        FmnistError: If there is no such file, or it isn't all that a comparison needs.
    """
    try:
        rows: list[Row] = json.loads(Path(path).expanduser().read_text())["rows"]
        timed = [row for row in rows if name_of(row) and row["epoch_seconds_median"]]
        for row in timed:
            ratio(row, row, "itself")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FmnistError(
            f"against: expected the benchmark.json of another run at {path}, whole and of this version; {error!r}"
        ) from None
    if not timed:
        raise FmnistError(f"against: expected epoch times in {path}, received none; run it with -P level=epoch")
    return rows


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
        "start-up are outside. Share of matmul: operations a second against those of a matrix product on the same "
        "device in the same precision, medians both."
        + ("" if any(each["device.tf32"] for each in rows) else " TF32 is off everywhere, in stock fit too."),
        "",
        *table(
            HEADS,
            [
                (
                    name_of(each),
                    median(figures(each, "epoch_seconds")),
                    number(each["images_per_second"], ",.0f"),
                    number(each["startup_seconds"], ".1f"),
                    number(
                        each["input_wait_seconds"],
                        ".2f",
                        none="unknown" if each["trainer"] == "fit" else "none",
                    ),
                    number(each["share_of_matmul"], ".0%"),
                    median(figures(each, "latency_seconds"), scale=1e3),
                    number(each["inference_images_per_second_median"], ",.0f"),
                    number(each["host_memory_bytes"] / 2**20 if each["host_memory_bytes"] else None, ",.0f"),
                    number(each["power_watts"], ".0f"),
                )
                for each in rows
                if each["rounds"] and each["model"] != OP
            ],
        ),
    ]
    ops = [each for each in rows if each["rounds"] and each["model"] == OP]
    if ops:
        heads = ("one operation on", "matrix product, ms", "GFLOP/s", "convolution, ms", "GFLOP/s")
        lines += ["", *table(heads, [_op_texts(each) for each in ops])]
    pairs = [(each, other) for each in rows for other in others if _same_training(each, other)]
    found = [*ratios(rows), *(ratio(each, other, "the other run") for each, other in pairs)]
    if found:
        compared = [
            (
                name_of(each.row),
                f"**{each.times_as_fast.median:.2f}x** ({each.times_as_fast.min:.2f}-"
                f"{each.times_as_fast.max:.2f}, {each.times_as_fast.n})",
                f"{each.label}: {name_of(each.reference)}",
                "; ".join(each.differences) or "nothing else",
            )
            for each in found
        ]
        names = ("cell", "times as fast: median of the rounds (min-max, n)", "as", "what differs besides")
        lines += ["", *table(names, compared)]
        if pairs:
            lines += ["", "Rounds of the other run are no pairs of these: another time, perhaps another machine."]
        if any(each.times_as_fast.n == 2 for each in found):
            lines += ["", "Of two rounds (n = 2) the median is the mean, and min and max are all there is."]
    left_out = [name_of(each) for each in others if not any(each is other for _, other in pairs)]
    if left_out:
        lines += ["", f"- left out of the other run, with no times of the same training: {'; '.join(left_out)}"]
    unmeasured = [each for each in rows if each["status"] != "measured"]
    for status, reason in dict.fromkeys((each["status"], each["reason"]) for each in unmeasured):
        named = "; ".join(name_of(each) for each in unmeasured if each["reason"] == reason)
        lines += ["", f"- {status}, {reason}: {named}"]
    for each in rows:
        if each["warmup_agreed"] is False:
            lines += ["", f"- {name_of(each)}: epochs still differed by more than 5 % when the warm-up ended"]
    return "\n".join([*lines, "", *_claim(rows)]) + "\n"


def name_of(row: Row) -> str:
    """A row's cell in words."""
    width = "" if row["width"] == 1 else f" x{row['width']:g}"
    trained = "" if row["model"] == OP else f", {row['trainer']}, batch {row['batch_size']}"
    parts = "" if row["batch_parts"] == AUTO else f", batch_parts {row['batch_parts']}"
    return f"{row['model']}{width} on {row['device']}, {row['backend']}{trained}, {row['precision']}{parts}"


def progress_text(cell: Cell, measurements: list[Measurement], grid: Grid) -> str:
    """A cell and what came of its newest measurement, in a line."""
    newest = sum_up(cell, measurements[-1:], grid)
    if newest["status"] != "measured":
        return f"{name_of(newest)}: {newest['status']}: {newest['reason']}"
    for name in ("epoch_seconds", "latency_seconds", "matmul_seconds"):
        if known := figures(newest, name):
            return f"{name_of(newest)}: {name} {median(known)}"
    return name_of(newest)


def _claim(rows: Sequence[Row]) -> list[str]:
    own = [each for each in rows if each["model"] == CLAIM_MODEL and each["width"] == 1]
    timed = [each for each in own if each["epoch_seconds_median"]]
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


def _same_training(one: Row, other: Row) -> bool:
    """Whether two rows of different runs time the same training, whatever it ran on."""
    names = ("model", "width", "trainer", "batch_size", "batch_parts")
    timed = one["epoch_seconds_median"] and other["epoch_seconds_median"]
    return bool(timed) and all(one[name] == other[name] for name in names)


def _op_texts(row: Row) -> list[str]:
    texts = [f"{row['device']}, {row['backend']}, {row['precision']}"]
    for op in ("matmul", "convolution"):
        rate = row[f"{op}_flops_per_second"]
        texts += [median(figures(row, f"{op}_seconds"), scale=1e3), f"{rate / 1e9:,.0f}"]
    return texts
