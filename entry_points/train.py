"""`mlflow run . -e train`: train a model, test it once, log everything, register the result."""

import dataclasses
from typing import Any

from fmnist import checkpoint, cli, data, device, training
from fmnist.settings import Train


def train(settings: Train) -> dict[str, Any]:
    device.refuse_missing(settings.device, settings.backend)
    plan = training.plan(settings)
    splits = data.load(
        settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
    )
    training.check_fits(plan, splits)
    seeds = range(settings.seed, settings.seed + settings.repeats)
    digests = {seed: checkpoint.digest(dataclasses.replace(plan, seed=seed).identity(splits)) for seed in seeds}
    found = {seed: checkpoint.find(settings.resume, digests[seed]) if settings.resume else None for seed in seeds}
    from fmnist import tracking

    def train_once(run_id: str, plan: training.Plan) -> dict[str, Any]:
        earlier, start = found[plan.seed] or (None, None)
        tracking.log_dataset(splits)
        tracking.log_plan(plan, used)
        if earlier:
            tracking.log_resumed(earlier)

        def on_epoch(epoch: training.Epoch) -> None:
            tracking.log_epoch(epoch)
            progress.step(str(epoch))

        def on_checkpoint(state: checkpoint.Checkpoint) -> None:
            checkpoint.save(run_id, digests[plan.seed], state)
            if earlier:
                checkpoint.discard(earlier)

        with cli.Progress(plan.model.name, plan.recipe.epochs) as progress:
            trained = training.train(plan, splits, on_epoch, start=start, on_checkpoint=on_checkpoint)
        tracking.log_trained(trained, splits)
        if settings.tensorboard:
            tracking.log_tensorboard(trained)
        model_uri = tracking.log_model(trained, splits, plan)
        checkpoint.discard(run_id)
        return {"run_id": run_id, "model_uri": model_uri, **tracking.log_summary(trained, plan, splits, used)}

    with tracking.run(settings) as run_id:
        used = device.select(settings.device, settings.backend, stock=settings.trainer == "fit")
        plan = training.settle(plan, used)
        if settings.repeats == 1:
            best = result = train_once(run_id, plan)
        else:
            results = []
            for seed in seeds:
                with tracking.nested_run(f"{plan.model.name} seed {seed}") as nested_id:
                    results.append(train_once(nested_id, dataclasses.replace(plan, seed=seed)))
            best = max(results, key=lambda result: result["validation_accuracy"])
            result = {"run_id": run_id, **tracking.log_repeats(results)}
        registered = tracking.register(best, settings.registered_model)
    return {"registered": registered, **result}


if __name__ == "__main__":
    cli.main(Train, train)
