"""What a store starts with: `mlruns_template/experiments.yaml` as MLflow's experiments, tags and saved views.

All that is written is noted, with its digest, on what it is written to. What has another digest now, or is gone,
was changed by a person and is left alone; the rest follows the file.
"""

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fmnist.cache import digest
from fmnist.tracking import pages

FILE = Path(__file__).parents[2] / "mlruns_template" / "experiments.yaml"  # beside the package when installed, too
NOTE = "mlflow.note.content"
WRITTEN = "mlflow.template.written"  # MLflow's pages hide what begins so
OTHERS = "Default"  # an experiment that isn't in the file is described as this one


def apply(client: MlflowClient) -> None:
    """Brings a store to what the file says: makes what is missing, leaves what a person changed."""
    for name in reversed(_template()["experiments"]):  # MLflow lists the newest first
        fill(client, name)
    for name, about in _template()["registered_models"].items():
        _describe_model(client, name, about)


def fill(client: MlflowClient, name: str) -> None:
    """Gives an experiment, which is made if there is none, its description and its views."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(name))
    if experiment.lifecycle_stage != "active":
        return  # a person deleted it
    known = _template()["experiments"]
    wanted = _tags(experiment.experiment_id, experiment.creation_time, known.get(name, known[OTHERS]))
    _write(
        wanted,
        experiment.tags,
        lambda tag, value: client.set_experiment_tag(experiment.experiment_id, tag, value),
    )


def _describe_model(client: MlflowClient, name: str, about: str) -> None:
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        model = client.create_registered_model(name)

    def write(tag: str, value: str) -> None:
        if tag == NOTE:
            client.update_registered_model(name, value)
        else:
            client.set_registered_model_tag(name, tag, value)

    _write({NOTE: about}, model.tags | ({NOTE: model.description} if model.description else {}), write)


def _write(wanted: Mapping[str, str], found: Mapping[str, str], write: Callable[[str, str], None]) -> None:
    """Writes what is wanted where nobody else has written, and notes what it wrote."""
    before = json.loads(found.get(WRITTEN, "{}"))
    written = dict(before)
    for tag, value in wanted.items():
        ours = digest(found[tag]) == before.get(tag) if tag in found else tag not in before
        if ours and found.get(tag) != value:
            write(tag, value)
            written[tag] = digest(value)
    if written != before:
        write(WRITTEN, json.dumps(written))


@cache
def _template() -> dict[str, Any]:
    import yaml

    content: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return content


def _tags(experiment_id: str, made_at: int, described: Mapping[str, Any]) -> dict[str, str]:
    """The tags of an experiment: its description, whose first line is links to its views, and the views."""
    views = {key: _template()["views"][key] for key in described["views"]}

    def link(text: str, key: str, *, charts: bool) -> str:
        return f"[{text}]({pages.experiment_path(experiment_id, view=key, charts=charts)})"

    links = [
        f"{link(view['name'], key, charts=True)} ({link('table', key, charts=False)})"
        for key, view in views.items()
    ]
    about = "\n\n".join([" · ".join(links), described["about"].strip()]) if links else described["about"].strip()
    tags = {NOTE: about, "mlflow.experimentKind": "custom_model_development"}
    for key, view in views.items():
        state = base64.b64encode(zlib.compress(json.dumps(_state(key, view)).encode())).decode()
        wrapped = {"name": view["name"], "createdAt": made_at, "updatedAt": made_at, "state": f"deflate;{state}"}
        tags[f"{pages.VIEW_TAG}{key}"] = json.dumps(wrapped)
    return tags


def _state(key: str, view: Mapping[str, Any]) -> dict[str, Any]:
    """A saved view as MLflow's pages keep it."""
    sections, charts = [], []
    for number, section in enumerate(view["sections"]):
        own = f"{key}-{number}"
        sections.append(
            {
                "uuid": own,
                "name": section["name"],
                "display": True,
                "isReordered": True,
                "columns": section["columns"],
                "cardHeight": section.get("height", 360),
            }
        )
        charts += [
            {"uuid": f"{own}-{place}", "metricSectionId": own, **_chart(chart)}
            for place, chart in enumerate(section["charts"])
        ]
    sections += [
        {"uuid": f"{key}-{name}", "name": name, "display": False, "isReordered": True}
        for name in view.get("folded", ())
    ]
    widths = {_column(name): width for name, width in view["columns"].items()}
    grouped = [
        dict(zip(("mode", "groupByData"), each.split(".", 1), strict=True)) for each in view.get("group", ())
    ]
    return {
        "searchFilter": view["filter"],
        "orderByKey": _column(view["order"]),
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(widths),
        "columnOrder": [*widths, "runDateAndNestInfo", "duration"],
        "columnWidths": widths,
        "runsHiddenMode": "FIRST_20_RUNS",
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [each | {"mode": each["mode"].removesuffix("s")} for each in grouped],
        }
        if grouped
        else None,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunSections": sections,
        "compareRunCharts": charts,
    }


def _chart(chart: Mapping[str, Any]) -> dict[str, Any]:
    kind = next(name for name in ("bar", "line", "scatter", "parallel") if name in chart)
    shown = chart[kind]
    common = {"type": kind.upper(), "runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    if kind == "bar":
        return common | {"metricKey": shown}
    if kind == "line":
        by, scale = chart.get("by", "step"), "log" if chart.get("log") else "linear"
        lines = {"metricKey": shown, "selectedMetricKeys": [shown], "lineSmoothness": 0, "yAxisKey": "metric"}
        return common | lines | {"xAxisKey": by, "useGlobalXaxisKey": False, "scaleType": scale}
    if kind == "scatter":
        axes = ({"key": metric, "type": "METRIC"} for metric in shown)
        return common | dict(zip(("xaxis", "yaxis"), axes, strict=True))
    names = {
        part: [each.split(".", 1)[1] for each in shown if each.startswith(part)] for part in ("params", "metrics")
    }
    return common | {"selectedParams": names["params"], "selectedMetrics": names["metrics"], "showAllRuns": True}


def _column(name: str) -> str:
    """`metrics.test/accuracy` as MLflow's pages write it: metrics.`test/accuracy`."""
    kind, _, key = name.partition(".")
    return f"{kind}.`{key}`"
