"""The page: its sections in order, its style and its script, in one file that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist.report.board import board
from fmnist.report.charts import swatch
from fmnist.report.claims import claims
from fmnist.report.groups import Group, by_data, comparisons, groups, ranks
from fmnist.report.images import disagreements
from fmnist.report.machines import claimed, provenance, searches, speed
from fmnist.report.markup import Element, element, text_of
from fmnist.report.models import Looks, confusion, costs, leaderboard, learning, looks
from fmnist.report.records import Gathered

TITLES = {
    "leaderboard": "Leaderboard",
    "costs": "Cost",
    "curves": "Curves",
    "confusion": "Confusion",
    "disagree": "Disagreement",
    "records": "Records",
    "speed": "Speed",
    "search": "Search",
    "claims": "Claims",
    "provenance": "Sources",
}


def page(gathered: Gathered, images: Mapping[str, NDArray[np.uint8]], made: str) -> str:
    """The whole report as HTML.

    Args:
        gathered: The runs.
        images: Test images `(batch, 28, 28)` by the digest of their data, as far as they are at hand.
        made: When, by which version: a line for the foot.
    """
    found = groups(gathered.trainings)
    look = looks(found)
    sections = [
        *(section(found, look) for section in (leaderboard, costs, learning, confusion) if found),
        *([disagreements(found, look, images)] if found else []),
        board(gathered.speedruns),
        speed(gathered.benchmarks),
        searches(gathered.searches),
        claimed(claims(found, gathered.benchmarks)),
        provenance(gathered, found, look),
    ]
    shown = [each.get("id", "") for each in sections]
    links = [element("li", element("a", TITLES[key], href=f"#{key}")) for key in shown]
    body = element(
        "body",
        element("a", "Skip to the report", href="#report", class_="skip"),
        element(
            "header",
            element(
                "div",
                element("p", "fmnist · report", class_="kicker"),
                element("button", "Light / dark", type="button", id="theme", aria_pressed="false"),
                class_="top",
            ),
            element("h1", _headline(found)),
            element("p", _standfirst(gathered, found), class_="standfirst"),
        ),
        element("nav", element("ol", *links), aria_label="Sections"),
        *([_filter(found, look)] if len(found) > 1 else []),
        element("main", *sections, id="report", tabindex="-1"),
        element("footer", element("p", made)),
        element("div", id="tip", role="status", hidden=True),
    )
    folder = Path(__file__).parent
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"fmnist report: {', '.join(gathered.experiments)}"),
        element("style", (folder / "page.css").read_text()),
    )
    body.append(element("script", (folder / "page.js").read_text()))
    return f"<!doctype html>\n{text_of(element('html', head, body, lang='en'))}\n"


def _headline(found: list[Group]) -> str:
    if not found:
        return "What the runs of this store show"
    largest, *others = by_data(found)
    same = [
        each for each in others if each[0].first.dataset == largest[0].first.dataset
    ]  # trained on other images of it
    own = max((largest, *same), key=lambda each: each[0].accuracy.mean)
    first = [each for each, rank in zip(own, ranks(own, comparisons(own)), strict=True) if rank == 1]
    accuracy = f"{100 * first[0].accuracy.mean:.2f} %"
    dataset, n = own[0].first.dataset.replace("-", "\N{NON-BREAKING HYPHEN}"), len(first[0].members)
    if len(own) == 1:
        return f"{first[0].name} gets {accuracy} of {dataset} right"
    if len(first) == 1:
        return f"{first[0].name} leads on {dataset} with {accuracy} (n = {n})"
    return f"{len(first)} of {len(own)} models share the first rank on {dataset}, at up to {accuracy}"


def _standfirst(gathered: Gathered, found: list[Group]) -> str:
    devices = dict.fromkeys(f"{each.device}: {each.run.device}" for each in gathered.trainings)
    counts = [
        _count(number, one, many)
        for number, one, many in (
            (len(gathered.trainings), "training", ""),
            (len(found), "model and recipe", "models and recipes"),
            (len(gathered.benchmarks), "benchmark", ""),
            (len(gathered.searches), "search", "searches"),
            (len(gathered.speedruns), "speedrun", ""),
        )
        if number
    ]
    where = f", on {'; '.join(devices)}" if devices else ""
    return f"{', '.join(counts)} from {_count(len(gathered.experiments), 'experiment')}{where}."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _filter(found: list[Group], look: Looks) -> Element:
    boxes = [
        element(
            "label",
            element("input", type="checkbox", checked=True, value=look[each.name].group),
            swatch(look[each.name]),
            each.name,
        )
        for each in found
    ]
    return element(
        "form", element("fieldset", element("legend", "Show"), *boxes), class_="filter", aria_label="Filter"
    )
