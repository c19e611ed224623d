"""`mlflow run . -e evaluate`: say what a model is worth, whoever made it."""

from typing import Any

from fmnist import cli, data  # noqa: F401  # data fills the registry of datasets
from fmnist.settings import Evaluate


def evaluate(settings: Evaluate) -> dict[str, Any]:
    from fmnist.evaluation.assessment import assess
    from fmnist.tracking import evaluation as log
    from fmnist.tracking import runs, versions

    runs.open_store()
    version = versions.find(settings.model_uri)
    splits = versions.splits(version, settings.dataset, settings.data_dir)
    with runs.run(settings, f"evaluate {version} · {settings.split}") as run_id:
        log.log_begin(version, splits)
        served = versions.load(version, len(splits.class_names))
        found = assess(served.predict, served.answer, splits, settings.split)
        result = log.log_assessment(version, splits, found)
    return {"run_id": run_id, **result}


if __name__ == "__main__":
    cli.main(Evaluate, evaluate)
