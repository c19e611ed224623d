"""`mlflow run . -e preprocess`: fetch a dataset, check it, split it, and show it."""

from typing import Any

from fmnist import cli, data
from fmnist.settings import Preprocess


def preprocess(settings: Preprocess) -> dict[str, Any]:
    splits = data.load(
        settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
    )
    from fmnist import tracking

    with tracking.run(settings) as run_id:
        tracking.log_dataset(splits)
        tracking.log_data_plots(splits)
    return {"run_id": run_id, **splits.manifest}


if __name__ == "__main__":
    cli.main(Preprocess, preprocess)
