"""`mlflow run . -e preprocess`: fetch a dataset, check it, split it, and show it."""

from typing import Any

from fmnist import cli, data
from fmnist.settings import Preprocess


def preprocess(settings: Preprocess) -> dict[str, Any]:
    splits = data.load(
        settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
    )
    from fmnist.tracking import runs
    from fmnist.tracking import training as log

    with runs.run(settings, f"preprocess {settings.dataset}") as run_id:
        log.log_dataset(splits)
        log.log_data_plots(splits)
    return {"run_id": run_id, **splits.manifest}


if __name__ == "__main__":
    cli.main(Preprocess, preprocess)
