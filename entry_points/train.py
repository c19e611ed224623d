"""`mlflow run . -e train`: train a model, test it once, log everything, register the result."""

from typing import Any

from fmnist import cli, data, device, training
from fmnist.settings import Train


def train(settings: Train) -> dict[str, Any]:
    device.refuse_missing(settings.device, settings.backend)
    plan = training.plan(settings)
    splits = data.load(
        settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
    )
    training.check_fits(plan, splits)
    from fmnist import tracking

    with tracking.run(settings) as run_id:
        tracking.log_dataset(splits)
        used = device.select(settings.device, settings.backend)
        tracking.log_plan(plan, used)
        with cli.Progress(plan.model.name, plan.recipe.epochs) as progress:

            def on_epoch(epoch: training.Epoch) -> None:
                tracking.log_epoch(epoch)
                shown = {"train": epoch.train_accuracy, "val": epoch.validation_accuracy, "loss": epoch.train_loss}
                progress.update(epoch.number, epoch.seconds, shown)

            trained = training.train(plan, splits, on_epoch)
        tracking.log_trained(trained, splits)
        if settings.tensorboard:
            tracking.log_tensorboard(trained)
        registered = tracking.log_model(trained, splits, plan, settings.registered_model)
        result = tracking.log_summary(trained, plan, splits, used)
    return {"run_id": run_id, "registered": registered, **result}


if __name__ == "__main__":
    cli.main(Train, train)
