"""`mlflow run . -e train`: train a model, test it once, log everything, register the result."""

import dataclasses
from contextlib import ExitStack
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
    plans = [dataclasses.replace(plan, seed=settings.seed + index) for index in range(settings.repeats)]
    identities = [training.identity(each, splits, settings.device) for each in plans]
    epochs = plan.recipe.epochs
    found = [checkpoint.find(settings.resume, each, epochs) if settings.resume else None for each in identities]
    elsewhere: set[str] = set()
    from fmnist.tracking import models, runs
    from fmnist.tracking import training as log

    def train_once(index: int, run_id: str) -> dict[str, Any]:
        plan, earlier = training.settle(plans[index], used), found[index]
        keeper = kept.enter_context(checkpoint.Keeper(run_id, identities[index], epochs))

        def on_epoch(epoch: training.Epoch) -> None:
            log.log_epoch(epoch)
            progress.step(str(epoch))

        def on_checkpoint(state: checkpoint.Checkpoint) -> None:
            keeper.save(state)
            if earlier:
                checkpoint.discard(earlier)

        log.log_begin(plan, splits, used, resumed_from=earlier.run_id if earlier else None)
        with cli.Progress(plan.model.name, plan.recipe.epochs) as progress:
            start = earlier.checkpoint if earlier else None
            trained = training.train(plan, splits, on_epoch, start=start, on_checkpoint=on_checkpoint)
        result = log.log_end(trained, plan, splits, used, tensorboard=settings.tensorboard)
        keeper.finish(result)
        return result

    with runs.run(settings) as run_id, ExitStack() as kept:  # what is kept stays this process's until all is done
        for index, earlier in enumerate(found):
            if earlier:
                kept.callback(earlier.lock.release)
                if earlier.result and not models.is_logged(earlier.result["model_uri"]):
                    elsewhere.add(earlier.run_id)  # another store holds it
                    found[index] = None
        used = device.select(settings.device, settings.backend, stock=settings.trainer == "fit")
        if settings.repeats > 1:
            results = []
            for index, earlier in enumerate(found):
                if earlier and earlier.result:
                    log.adopt(earlier.run_id)
                    results.append(earlier.result)
                else:
                    with runs.nested_run(f"{plan.model.name} seed {plans[index].seed}") as nested_id:
                        results.append(train_once(index, nested_id))
            best = max(results, key=lambda result: result["validation_accuracy"])
            result = {"run_id": run_id, **log.log_repeats(results)}
        elif found[0] and found[0].result:
            log.log_finished_elsewhere(found[0].run_id)
            best = result = found[0].result
        else:
            best = result = train_once(0, run_id)
        registered = models.register(best, settings.registered_model)
    for identity in identities:
        checkpoint.discard_all(identity, epochs, but=elsewhere)
    return {"registered": registered, **result}


if __name__ == "__main__":
    cli.main(Train, train)
