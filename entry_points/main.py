"""`mlflow run .`: preprocess, train, evaluate and promote in one go."""

from typing import Any

from entry_points.evaluate import evaluate
from entry_points.preprocess import preprocess
from entry_points.promote import promote
from entry_points.train import train
from fmnist import cli, data, device, training
from fmnist.errors import Refused
from fmnist.settings import Evaluate, Main, Preprocess, Promote, Train


def main(settings: Main) -> dict[str, Any]:
    device.refuse_missing(settings.device, settings.backend)
    training.plan(settings.step(Train))
    from fmnist.tracking import pipeline, promotion, runs

    with runs.run(settings, f"main {settings.model}") as run_id:
        with pipeline.failing("preprocess"):
            splits = data.load(
                settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
            )
        with pipeline.failing("promote"):  # now, and not after a training
            promotion.check_comparable(settings.registered_model, splits, settings.data_dir)
        inputs = {"data": splits.manifest["digest"]}
        steps = {"preprocess": pipeline.step(settings.step(Preprocess), preprocess, inputs)}
        trained = pipeline.step(
            settings.step(Train, resume="auto"), train, inputs, is_there=pipeline.is_registered
        )
        version = trained["registered"]
        model_uri, inputs = f"models:/{version}", inputs | {"version": version}
        evaluated = pipeline.step(settings.step(Evaluate, model_uri=model_uri), evaluate, inputs)
        inputs |= {"champion": promotion.holder(settings.registered_model, promotion.CHAMPION)}
        judged = pipeline.step(
            settings.step(Promote, candidate=model_uri),
            _judge,
            inputs,
            is_there=lambda earlier: not earlier["promoted"],  # the champion is another: it was taken back
            stands=promotion.standing(*version.split("/")),
        )
        steps |= {"train": trained, "evaluate": evaluated, "promote": judged}
        result = pipeline.log_result(version, steps)
        champion = promotion.holder(settings.registered_model, promotion.CHAMPION)
    return {"run_id": run_id, "champion": champion, **result}


def _judge(settings: Promote) -> dict[str, Any]:
    """Promotes; a refusal is a result too: the pipeline has done its work either way."""
    try:
        return promote(settings)
    except Refused as decision:
        return decision.result


if __name__ == "__main__":
    cli.main(Main, main)
