"""What a person reads on a run's page and on a version's, in Markdown: the verdict first."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fmnist import markdown
from fmnist.statistics import wilson


def run_card(result: Mapping[str, Any], run_id: str) -> str:
    """The description of a training run, whose page shows the first six lines at once."""
    timing = "not timed"
    if result["epoch_seconds_median"]:
        timing = f"{result['epoch_seconds_median']:.2f} s an epoch (median of {result['num_timed_epochs']})"
    return "\n".join(
        [
            f"**{result['test_accuracy']:.2%}** test accuracy: {result['model']} on {result['dataset']}, "
            f"{result['recipe']}, seed {result['seed']}, weights of epoch {result['kept_epoch']}.",
            "",
            f"{timing}; {result['device']}.",
            "",
            _picture("learning curves", "learning_curves.png", run_id),
        ]
    )


def repeats_card(first: Mapping[str, Any], together: Mapping[str, Any]) -> str:
    """The description of a run of several seeds, of the first one's result and what they came to together."""
    return (
        f"**{_mean(together)}**: {first['model']} on {first['dataset']}, {first['recipe']}; standard deviation "
        f"{100 * together['test_accuracy']['std']:.2f} points; {first['device']}."
    )


def model_card(result: Mapping[str, Any], version: str, experiment_id: str) -> str:
    """The description of a registered version.

    Args:
        result: Of the training that made it; where others were trained like it, what they came to is `together`.
        version: `name/number`.
        experiment_id: Of its run.
    """
    run_id, together = result["run_id"], result.get("together")
    if together and together["repeats"] > 1:
        verdict = f"**{_mean(together)}**. This version is seed {result['seed']}, which validated best: "
        verdict += f"{result['test_accuracy']:.2%}."
    else:
        verdict = f"**{result['test_accuracy']:.2%} test accuracy** of one seed, so without a spread"
        if num_images := result.get("num_test_images"):
            low, high = wilson(round(result["test_accuracy"] * num_images), num_images)
            verdict += f"; with as many other images as these {num_images:,}: {low:.2%} to {high:.2%}"
        verdict += "."
    rows = [
        ("data", f"{result['dataset']}, digest `{result['dataset_digest'][:12]}`"),
        ("validation accuracy", f"{result['validation_accuracy']:.2%}"),
        ("recipe", result["recipe"]),
        ("parameters", markdown.number(result["num_parameters"], ",")),
        ("trained on", result["device"]),
    ]
    if result.get("epoch_seconds_median"):
        rows.append(
            ("an epoch", f"{result['epoch_seconds_median']:.2f} s, median of {result['num_timed_epochs']}")
        )
    return "\n".join(
        [
            f"{verdict} {result['model']}, [run](#/experiments/{experiment_id}/runs/{run_id}).",
            "",
            *markdown.table(("", ""), rows),
            "",
            f"Serve it: `mlflow models serve -m models:/{version} --env-manager local`",
            "",
            _picture("confusion matrix and the surest mistakes", "test/card.png", run_id),
        ]
    )


def with_section(description: str, heading: str, text: str) -> str:
    """A description with a section in place of an earlier one of the same heading, or at its end."""
    before, _, rest = description.partition(heading)
    _, mark, after = rest.partition("\n### ")
    parts = (before.strip(), f"{heading}\n\n{text}", f"{mark}{after}".strip())
    return "\n\n".join(filter(None, parts))


def _mean(together: Mapping[str, Any]) -> str:
    test = together["test_accuracy"]
    return (
        f"{test['mean']:.2%} test accuracy, mean of {together['repeats']} seeds (95 % interval "
        f"{test['ci95_low']:.2%} to {test['ci95_high']:.2%})"
    )


def _picture(title: str, path: str, run_id: str) -> str:
    """An artifact of a run, as MLflow's own pages show it."""
    return f"![{title}](get-artifact?{urlencode({'path': path, 'run_uuid': run_id})})"
