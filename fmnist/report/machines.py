"""Sections about speed, searches, claims, and where each number is from."""

import math
from collections.abc import Sequence

from fmnist.benchmark.grid import figures
from fmnist.benchmark.ratios import crossovers, ratios
from fmnist.benchmark.verdict import name_of
from fmnist.markdown import median
from fmnist.report import charts
from fmnist.report.charts import Line, Look, Mark
from fmnist.report.claims import Claim, hardware
from fmnist.report.groups import Group
from fmnist.report.markup import Child, Element, code, element, note, section, table
from fmnist.report.models import Looks
from fmnist.report.records import Benchmark, Gathered, Run, Search

GPU_COMMAND = "mlflow run . -e benchmark -P devices=cpu,gpu"


def speed(benchmarks: Sequence[Benchmark]) -> Element:
    """How many times as fast, and from which size on a GPU pays."""
    parts: list[Child] = []
    for each in benchmarks:
        timed = [row for row in each.rows if row["epoch_seconds_median"]]
        found = ratios(each.rows)
        parts.append(element("h3", each.run.name))
        about = hardware(each.rows[0]) if each.rows else "nothing measured"
        parts.append(
            note(f"{about}; {each.run.versions}; commit {each.run.commit}; {each.run.started}; {each.run.run_id}")
        )
        marks = [
            Mark(
                ratio.times_as_fast.median,
                0,
                ratio.times_as_fast.min,
                ratio.times_as_fast.max,
                f"{name_of(ratio.row)} against {ratio.label}",
                f"{name_of(ratio.row)}\nagainst {name_of(ratio.reference)}\n{median(ratio.times_as_fast)} times "
                f"as fast: "
                f"median (min-max, rounds)\n{'; '.join(ratio.differences) or 'nothing else differs'}",
                Look(f"r{number}", 0 if ratio.row["device"] == "cpu" else 1, 0),
            )
            for number, ratio in enumerate(found)
        ]
        if marks:
            chart = charts.intervals(
                marks,
                title=f"Times as fast, {each.run.name}",
                description="A row for each pair of cells; the line at 1 is as fast as the reference.",
                x_label="times as fast: median, min to max over the rounds (log)",
                text=charts.number,
                log=True,
                reference=1.0,
            )
            parts.append(element("figure", chart, element("figcaption", "Epoch times against their references")))
        rows = [
            (name_of(row), median(figures(row, "epoch_seconds")), f"{row['images_per_second']:,.0f}")
            for row in timed
        ]
        if rows:
            caption = f"Epoch times of {each.run.name}, {timed[0]['images']:,} images an epoch"
            parts.append(table(caption, ("cell", "s an epoch: median (min-max, n)", "images/s"), rows))
        for crossing in crossovers(each.rows):
            for title, gains in crossing["maps"].items():
                caption = f"Crossover of {crossing['title']}, {title}: CPU time over GPU time"
                cells = [
                    (f"width ×{width:g}", *(_gain(gain) for gain in line))
                    for width, line in zip(crossing["widths"], gains, strict=True)
                ]
                parts.append(
                    table(caption, ("model", *(f"batch {size}" for size in crossing["batch_sizes"])), cells)
                )
    if not any(row["device"] == "gpu" and row["epoch_seconds_median"] for each in benchmarks for row in each.rows):
        what = "No benchmark in this report has timed a GPU" if benchmarks else "No benchmark is in this report"
        parts.append(element("p", f"{what}, so there is no crossover. To measure it: ", code(GPU_COMMAND), "."))
    return section("speed", "How much does the machine help?", *parts)


def searches(found: Sequence[Search]) -> Element:
    """What searches tried, and what the best of it was worth on fresh seeds."""
    parts: list[Child] = []
    for place, each in enumerate(found):
        result = each.result
        counts = ", ".join(
            f"{count} {name.removeprefix('num_')}" for name, count in result.items() if name.startswith("num_")
        )
        parts += [
            element("h3", result["study"]),
            note(f"Trials: {counts}; {each.run.started}; run {each.run.run_id}"),
        ]
        if each.trials:
            best, steps = -math.inf, []
            for number, value in each.trials:
                best = max(best, value)
                steps.append((float(number), best))
            look = Look(f"s{place}", 0, 1)
            tips = [f"after trial {number:.0f}: best {value:.2%}" for number, value in steps]
            drawn = [
                Line([(float(n), v)], [f"trial {n}: {v:.2%}"], "", f"trial {n}: validation accuracy {v:.2%}", look)
                for n, v in each.trials
            ]
            drawn.append(Line(steps, tips, "best", f"best so far: {best:.2%} at the end", Look(f"s{place}", 1, 0)))
            chart = charts.lines(
                drawn,
                title=f"Trials of {result['study']}",
                description="A dot for each trial; the line is the best validation accuracy so far.",
                x_label="trial",
                y_label="validation accuracy",
                text=charts.percent,
            )
            parts.append(
                element("figure", chart, element("figcaption", "Validation accuracy by trial; best so far"))
            )
        rows = [
            (
                each_one["candidate"],
                "" if each_one["search_accuracy"] is None else f"{each_one['search_accuracy']:.2%}",
                _seeds(each_one["validation_accuracy"]),
                _seeds(each_one["test_accuracy"]),
                code(each_one["command"]),
            )
            for each_one in result["candidates"]
        ]
        heads = ("candidate", "in the search", "validation on fresh seeds", "test", "command")
        parts.append(table(f"The best of {result['study']} and the model’s own recipe", heads, rows))
        gain = result["gain"]
        if gain and gain["ci95_low"] is not None:
            low, high = 100 * gain["ci95_low"], 100 * gain["ci95_high"]
            verb = "beats" if low > 0 else "is not shown to beat"
            parts.append(
                element(
                    "p",
                    f"On the test split the winner {verb} the model’s own recipe: {100 * gain['mean']:+.2f} "
                    f"points, 95 % "
                    f"interval {low:+.2f} to {high:+.2f}, n = {gain['n']} seeds in pairs.",
                )
            )
    if not found:
        parts.append(
            element(
                "p", "No search is in this report. One of ten trials: ", code("mlflow run . -e tune -P trials=10")
            )
        )
    return section("search", "What did searching find?", *parts)


def claimed(claims: Sequence[Claim]) -> Element:
    """What earlier projects reported beside what was measured here."""
    rows = []
    for each in claims:
        missing: list[Child] = []
        if each.commands:
            says = "Not measured yet. Type " if not each.measured else "The rest is measured by "
            missing = [element("li", says, *([code(command), " "] for command in each.commands), class_="missing")]
        measured = element("ul", *(element("li", line) for line in each.measured), *missing)
        rows.append((each.what, each.claimed, measured))
    return section(
        "claims",
        "Claimed and measured",
        element(
            "p",
            "Five earlier projects reported these. Beside each claim stands what the runs of this report "
            "measured: mean "
            "(95 % interval over seeds, n), or median (min-max, n) of times.",
        ),
        table("Figures of five earlier projects, and of this store’s runs", ("what", "claimed", "measured"), rows),
    )


def provenance(gathered: Gathered, groups: Sequence[Group], looks: Looks) -> Element:
    """Every run that a number is from."""
    rows: list[tuple[Child, ...]] = []
    names: list[str | None] = []
    for group in groups:
        for each in group.members:
            rows.append(_origin(each.run, group.name, str(each.seed), each.device))
            names.append(looks[group.name].group)
    for others in (gathered.benchmarks, gathered.searches, gathered.speedruns):
        for other in others:
            rows.append(_origin(other.run, "", other.run.params.get("seed", ""), ""))
            names.append(None)
    heads = ("run", "experiment", "what", "seed", "device", "commit", "versions", "when (UTC)", "command")
    return section(
        "provenance",
        "Where each number is from",
        table("Every run in this report", heads, rows, groups=names),
        note(f"{gathered.num_unfinished} runs that failed, were killed or still run are left out."),
    )


def _origin(run: Run, what: str, seed: str, kind: str) -> tuple[Child, ...]:
    return (
        element("span", run.name, " ", element("small", run.run_id, class_="id")),
        run.experiment,
        what,
        seed,
        f"{kind}: {run.device}" if kind else run.device,
        code(run.commit),
        run.versions,
        run.started,
        code(run.command) if run.command else "not known",
    )


def _gain(gain: float) -> Child:
    """CPU time over GPU time: one colour where the GPU is faster, the other where it is slower."""
    if math.isnan(gain):
        return "–"
    side, share = "more" if gain > 1 else "less", min(abs(math.log2(gain)) / 4, 1)
    return element("span", f"{gain:.2f}", class_="gain", style=f"--side: var(--{side}); --v: {share:.2f}")


def _seeds(known: dict[str, float] | None) -> str:
    if known is None:
        return "not measured"
    return f"{known['mean']:.2%} ({known['min']:.2%}-{known['max']:.2%}, {known['n']})"
