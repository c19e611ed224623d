"""`mlflow run . -e promote`: make a version the champion if it is shown to deserve it; or take that back."""

import dataclasses
from typing import Any

import numpy as np

from fmnist import cli
from fmnist.errors import Refused
from fmnist.evaluation.speed import latencies
from fmnist.promotion import Criteria, decide, describe, held_out, measure, overtaken
from fmnist.settings import Promote


def promote(settings: Promote) -> dict[str, Any]:
    """Raises `Refused`, after its run has ended, where the decision goes against the candidate."""
    from fmnist.tracking import promotion as log
    from fmnist.tracking import runs, versions

    runs.open_store()
    if settings.rollback:
        with runs.run(settings) as run_id:
            return {"run_id": run_id, **log.roll_back(settings.registered_model)}
    candidate = versions.find(settings.candidate)
    before = log.holder(candidate.name, log.CHAMPION)
    if before == candidate.number:
        with runs.run(settings):
            return log.log_unchanged(candidate)
    incumbent = log.incumbent(candidate, settings.against)
    contenders = [candidate, incumbent] if incumbent else [candidate]
    splits = [versions.own_splits(each, settings.data_dir) for each in contenders]
    images = held_out(*splits)
    criteria = Criteria(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Criteria)})
    with runs.run(settings):
        served = [versions.load(each, len(splits[0].class_names)) for each in contenders]
        timed = latencies([each.answer for each in served], images.images[:1].astype(np.float32))
        measured = [
            measure(
                str(name), each.predict, images, latency=latency, size_bytes=each.size_bytes, criteria=criteria
            )
            for name, each, latency in zip(contenders, served, timed, strict=True)
        ]
        decision = decide(measured[0], measured[1] if incumbent else None, criteria)
        log.log_evidence(decision)
        overtaker = log.crown(candidate.name, candidate.number, before=before) if decision.promoted else None
        if overtaker:
            decision = overtaken(decision, overtaker)
        text = describe(images, splits[0])
        result = log.log_decision(candidate, decision, text)
    if not decision.promoted:
        raise Refused(decision.reason, result)
    return result


if __name__ == "__main__":
    cli.main(Promote, promote)
