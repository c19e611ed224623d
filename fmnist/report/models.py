"""Sections about models: who is better, at what cost, how they learnt, what they take for what."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fmnist.markdown import median
from fmnist.report import charts
from fmnist.report.charts import Line, Look, Mark
from fmnist.report.groups import Comparison, Group, by_data, comparisons, pareto, ranks
from fmnist.report.markup import Element, element, note, section, table
from fmnist.report.records import Training

CURVES = {"accuracy": charts.percent, "loss": charts.number}
Looks = Mapping[str, Look]


def looks(groups: Sequence[Group]) -> dict[str, Look]:
    """By the group's name: a colour and shape for each model, a variant for each of its groups."""
    models = list(dict.fromkeys(each.first.model for each in groups))
    seen: dict[str, int] = {}
    found = {}
    for place, each in enumerate(groups):
        model = each.first.model
        seen[model] = seen.get(model, -1) + 1
        found[each.name] = Look(f"g{place}", models.index(model), seen[model])
    return found


def leaderboard(groups: Sequence[Group], looks: Looks) -> Element:
    """Who is shown to be better than whom, and by which test."""
    parts: list[Element] = []
    for own in by_data(groups):
        compared = comparisons(own)
        rows, marks = [], []
        for rank, each in sorted(zip(ranks(own, compared), own, strict=True), key=lambda pair: pair[0]):
            interval = each.interval
            between = f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}" if interval else "not known"
            figures = each.accuracy
            tip = _tip(each, f"test accuracy {figures.mean:.2%}, 95 % interval {between} %, n = {figures.n}")
            low, high = interval or (None, None)
            marks.append(Mark(figures.mean, 0, low, high, each.name, tip, looks[each.name]))
            by = "seeds" if figures.n > 1 else "images"
            rows.append(
                (
                    element("span", str(rank), class_="rank"),
                    _key(each, looks),
                    element(
                        "span",
                        f"{100 * figures.mean:.2f}",
                        class_="figure",
                        data_tip=tip,
                        tabindex="0",
                        role="note",
                    ),
                    element("span", between, " ", element("small", f"over {by}")),
                    str(figures.n),
                    each.seeds,
                    median(each.epoch_seconds),
                    f"{each.first.num_parameters:,}",
                    each.devices,
                )
            )
        heads = ("rank", "model", "test accuracy, %", "95 % interval", "n", "seeds")
        costs = ("s an epoch: median (min-max, n)", "parameters", "device")
        of = own[0].first
        images = f"{of.num_images:,} test images" if of.num_images else "test split"
        caption = f"{of.dataset}, {images}, data digest {of.digest[:12]}"
        wide = charts.intervals(
            marks,
            title=f"Test accuracy with 95 % intervals, {of.dataset}",
            description="A row for each model, the best first; the same figures stand in the table.",
            x_label="test accuracy",
            text=charts.percent,
        )
        names = [looks[name].group for name in (mark.label for mark in marks)]
        parts += [
            _figure(wide, "Mean test accuracy with its 95 % interval"),
            table(caption, (*heads, *costs), rows, groups=names),
            _tests(compared),
        ]
        again = [f"{each.run.name} ({each.run.run_id[:8]})" for group in own for each in group.again]
        if again:
            parts.append(note(f"Not counted, since their seed is there already: {', '.join(again)}."))
    return section(
        "leaderboard",
        "Which model is better?",
        element(
            "p",
            "A rank is one more than the number of models that are ",
            element("em", "shown"),
            " to be better: models that can’t be told apart share it, and none is before one with a higher mean. "
            "n counts seeds. With one seed, the interval is "
            "Wilson’s over the test images and says nothing of how seeds differ; with more, it is Student’s t "
            "over "
            "seeds.",
        ),
        *parts,
    )


def costs(groups: Sequence[Group], looks: Looks) -> Element:
    """Accuracy against time and size, with the front."""
    parts = []
    for own in by_data(groups):
        timed = [each for each in own if each.epoch_seconds]
        drawn = []
        for title, label, found, cost in (
            ("Accuracy against epoch time", "seconds an epoch, median", timed, _seconds),
            ("Accuracy against size", "parameters", own, lambda each: float(each.first.num_parameters)),
        ):
            if not found:
                continue
            points = [(cost(each), each.accuracy.mean) for each in found]
            marks = []
            for each, (x, y) in zip(found, points, strict=True):
                low, high = each.interval or (None, None)
                tip = _tip(each, f"test accuracy {y:.2%}, n = {len(each.members)}", f"{charts.number(x)} {label}")
                marks.append(Mark(x, y, low, high, each.name, tip, looks[each.name]))
            front = pareto(points)
            names = ", ".join(found[place].name for place in front)
            chart = charts.scatter(
                marks,
                front,
                title=f"{title}, {own[0].first.dataset}",
                description=f"Nothing is both more accurate and cheaper than: {names}.",
                x_label=f"{label} (log)",
            )
            drawn.append(_figure(chart, f"{title} on {own[0].first.dataset}. On the front: {names}."))
        parts.append(element("div", *drawn, class_="pair"))
        untimed = [each.name for each in own if not each.epoch_seconds]
        if untimed:
            parts.append(
                note(
                    "Not timed, since the one epoch that there is holds the compilation, or several seeds were "
                    f"trained at once: {', '.join(untimed)}."
                )
            )
    return section(
        "costs",
        "What does accuracy cost?",
        element(
            "p",
            "The line joins the models that no other beats in both. Bars are the intervals of the leaderboard. "
            "Times are of the training pass alone, without the first epoch, on the first device that the tip "
            "names; times of two machines don’t compare.",
        ),
        *parts,
    )


def learning(groups: Sequence[Group], looks: Looks) -> Element:
    """The curves of all seeds, laid over each other."""
    parts = []
    for own in by_data(groups):
        drawn = []
        for split, name in (("val", "validation"), ("train", "training")):
            for metric, text in CURVES.items():
                found = [
                    _line(group, member, f"{split}/{metric}", text, looks)
                    for group in own
                    for member in group.members
                    if member.curves.get(f"{split}/{metric}")
                ]
                if found:
                    title = f"{name.capitalize()} {metric}"
                    chart = charts.lines(
                        found,
                        title=f"{title} by epoch, {own[0].first.dataset}",
                        description=f"{len(found)} lines, one for each training.",
                        x_label="epoch",
                        y_label=metric,
                        text=text,
                    )
                    drawn.append(_figure(chart, f"{title} on {own[0].first.dataset}, a line for each seed"))
        parts.append(element("div", *drawn, class_="pair"))
    return section(
        "curves",
        "How did they learn?",
        element(
            "p",
            "Training figures are taken as the batches are met: with dropout, augmentation and weights that "
            "still move. "
            "So they can lie below those of validation.",
        ),
        *parts,
    )


def confusion(groups: Sequence[Group], looks: Looks) -> Element:
    """Two matrices and their difference; the page's script puts others in their place."""
    own = [each for each in by_data(groups)[0] if any(member.confusion is not None for member in each.members)]
    if not own:
        return section(
            "confusion", "What do they take for what?", element("p", "No run has kept its confusion matrix.")
        )
    shares = [_shares(each) for each in own]
    names = next(member.class_names for member in own[0].members if member.confusion is not None)
    choices: list[Element] = []
    pair = (0, min(1, len(own) - 1))
    for side, chosen in zip("AB", pair, strict=True):
        options = [
            element("option", each.name, value=place, selected=place == chosen) for place, each in enumerate(own)
        ]
        choices.append(element("label", f"{side}: ", element("select", *options, data_side=side)))
    matrices = {
        "A": (shares[pair[0]], own[pair[0]].name),
        "B": (shares[pair[1]], own[pair[1]].name),
        "A−B": (shares[pair[0]] - shares[pair[1]], "difference in points"),
    }
    tables = [_matrix(side, title, values, names) for side, (values, title) in matrices.items()]
    data = {
        "names": [f"{each.name}, mean of {len(each.members)} seed{'s' * (len(each.members) > 1)}" for each in own],
        "shares": [np.round(each, 2).tolist() for each in shares],
    }
    return section(
        "confusion",
        "What do they take for what?",
        element(
            "p",
            f"Of each hundred images of a class (row), how many are called what (column), on "
            f"{own[0].first.dataset}; the "
            "mean over seeds. In the difference, blue is where A says it more often, orange where B does.",
        ),
        element("form", *choices, class_="choice", aria_label="Which two models to compare"),
        element("div", *tables, class_="triple"),
        element("script", json.dumps(data).replace("<", "\\u003c"), type="application/json", id="matrices"),
    )


def _matrix(side: str, title: str, values: Any, names: Sequence[str]) -> Element:
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            *(
                element("td", f"{value:.2f}", class_="hit" if place == number else None)
                for number, value in enumerate(row)
            ),
        )
        for place, (name, row) in enumerate(zip(names, values, strict=True))
    ]
    made = element(
        "table",
        element("caption", element("b", side), " ", element("span", title)),
        element(
            "thead",
            element("tr", element("td"), *(element("th", element("span", name), scope="col") for name in names)),
        ),
        element("tbody", *rows),
        class_="matrix",
        data_matrix=side,
    )
    return element(
        "div", made, class_="scroll", role="region", aria_label=f"Confusion matrix {side}", tabindex="0"
    )


def _shares(group: Group) -> Any:
    """Of each hundred images of a class, how many are called what; the mean over seeds."""
    found = [each.confusion for each in group.members if each.confusion is not None]
    return np.mean([100 * each / np.maximum(each.sum(axis=1, keepdims=True), 1) for each in found], axis=0)


def _tests(compared: Sequence[Comparison]) -> Element:
    rows = [
        (
            pair.better.name,
            pair.worse.name,
            f"{100 * (pair.better.accuracy.mean - pair.worse.accuracy.mean):+.2f}",
            "not tested" if pair.p is None else f"{pair.p:.2g}" if pair.p >= 1e-4 else "< 0.0001",
            "yes" if pair.is_shown else "no",
            pair.test,
        )
        for pair in compared
    ]
    if not rows:
        return note("One model: nothing to compare with.")
    heads = ("model", "against", "difference, points", "p (Holm)", "shown to be better", "test")
    return element(
        "details",
        element("summary", f"The {len(rows)} tests behind the ranks"),
        table("Each pair of models, tested at 0.05 after Holm’s correction", heads, rows),
        note(
            "McNemar’s test compares two trained models over the test images: it can tell them apart, not their "
            "recipes. "
            "Welch’s t compares recipes over seeds; with few seeds it shows large differences only."
        ),
    )


def _line(group: Group, member: Training, key: str, text: Callable[[float], str], looks: Looks) -> Line:
    points = [(float(step), value) for step, value in member.curves[key]]
    label = f"{group.name}, seed {member.seed}"
    tips = [f"{label}\nepoch {step:.0f}: {value:.4f}" for step, value in points]
    tip = f"{label}\n{key}: {text(points[0][1])} in epoch 1, {text(points[-1][1])} in epoch {points[-1][0]:.0f}"
    return Line(points, tips, label, tip, looks[group.name])


def _seconds(group: Group) -> float:
    figures = group.epoch_seconds
    return figures.median if figures else 0.0


def _tip(group: Group, *figures: str) -> str:
    """The figures, and all that is needed to believe them."""
    first = group.first
    recipe = ", ".join(f"{name} {value}" for name, value in first.recipe.items())
    return "\n".join(
        [
            group.name,
            *figures,
            f"seed{'s' if len(group.members) > 1 else ''} {group.seeds}; {group.devices}",
            first.run.versions,
            recipe,
        ]
    )


def _key(group: Group, looks: Looks) -> Element:
    return element(
        "span",
        charts.swatch(looks[group.name]),
        group.name,
        class_="key",
    )


def _figure(chart: Element, caption: str) -> Element:
    return element("figure", chart, element("figcaption", caption))
