"""`mlflow run . -e train`: train a model, test it once, log everything, register the result."""

from typing import Any

from fmnist import cli, data, device, seeds, training
from fmnist.settings import Train


def train(settings: Train) -> dict[str, Any]:
    device.refuse_missing(settings.device, settings.backend)
    plan = training.plan(settings)
    if settings.start_from:
        from fmnist.tracking import training as tracking

        plan = tracking.begin_with(plan, settings.start_from)
    splits = data.load(
        settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
    )
    if plan.start:
        tracking.refuse_seen(plan.start.version, splits)
    training.check_fits(plan, splits)
    found = seeds.find(plan, splits, settings)
    from fmnist.tracking import models, runs
    from fmnist.tracking import training as tracking

    used = device.select(settings.device, settings.backend, stock=settings.trainer == "fit")
    command = seeds.Command(splits, used, tracking, cli.Progress, settings.tensorboard)
    with runs.run(settings, seeds.name(found, used)) as run_id:
        with seeds.Work(found, command) as work:
            best, result = work.train(run_id)
            registered = models.register(best, settings.registered_model)
        work.forget()
    return {"registered": registered, **result}


if __name__ == "__main__":
    cli.main(Train, train)
