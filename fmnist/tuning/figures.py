"""Optuna's plots of a study: as images, and all on one interactive page that needs no network."""

import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import matplotlib as mpl
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna.trial import TrialState


def images(study: optuna.Study) -> dict[str, Figure]:
    """The plots by name; those that so few trials allow."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as drawn

    found = {}
    with warnings.catch_warnings(), mpl.rc_context({"figure.constrained_layout.use": True}):
        warnings.simplefilter("ignore")  # experimental, all of them
        for name, plot in _plots(study, drawn).items():
            axes = plot()
            figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
            if name == "parallel_coordinate":
                figure.set_size_inches(1.8 * len(figure.axes), 6)
            for each in figure.axes:  # they overlap
                each.xaxis.set_minor_formatter(NullFormatter())
                each.yaxis.set_minor_formatter(NullFormatter())
            plt.close(figure)
            found[name] = figure
    return found


def page(study: optuna.Study) -> str:
    """The same plots as one HTML page."""
    from optuna import visualization

    parts: list[str] = []
    for name, plot in _plots(study, visualization).items():
        figure = plot()
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts, div_id=name))
    title = f"Study {study.study_name}"
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{''.join(parts)}"


def table(study: optuna.Study) -> str:
    """All trials as CSV: number, state, values, times, parameters, and what else is known of each."""
    frame = study.trials_dataframe(
        ("number", "state", "values", "datetime_start", "duration", "params", "user_attrs")
    )
    return str(frame.to_csv(index=False))


def _plots(study: optuna.Study, module: ModuleType) -> dict[str, Callable[[], Any]]:
    """Each plot that the study allows, ready to be drawn by a module of Optuna's."""
    objectives = study.user_attrs["identity"]["objective"].split(",")
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    index = objectives.index("accuracy")
    target: dict[str, Any] = {"target_name": (study.metric_names or objectives)[index]}
    if len(objectives) > 1:
        target["target"] = lambda trial: trial.values[index]
    varied = [name for name in (done[0].params if done else ()) if len({each.params[name] for each in done}) > 1]
    names = ["optimization_history"] if done else []
    if len({each.values[index] for each in done}) > 1 and varied:
        names += ["param_importances", "parallel_coordinate", "slice"]
    plots: dict[str, Callable[[], Any]] = {}
    for name in names:
        arguments: dict[str, Any] = dict(target)
        if name in ("parallel_coordinate", "slice"):
            arguments["params"] = varied
        elif name == "param_importances":
            arguments |= {"params": varied, "evaluator": optuna.importance.FanovaImportanceEvaluator(seed=0)}
        plots[name] = partial(getattr(module, f"plot_{name}"), study, **arguments)
    if len(objectives) > 1 and done:
        plots["pareto_front"] = partial(module.plot_pareto_front, study)
    return plots
