"""`mlflow run . -e promote`: make a version the champion if it is shown to deserve it; or take that back."""

import dataclasses
from typing import Any

from fmnist import cli
from fmnist.errors import Refused
from fmnist.prediction import labelled
from fmnist.promotion import Criteria, describe, held_out
from fmnist.settings import Promote


def promote(settings: Promote) -> dict[str, Any]:
    """Raises `Refused`, after its run has ended, where the decision goes against the candidate."""
    from fmnist.tracking import promotion as log
    from fmnist.tracking import runs, versions

    runs.open_store()
    if settings.rollback:
        places = log.places(settings.registered_model)
        with runs.run(settings, f"roll back {settings.registered_model}") as run_id:
            return {"run_id": run_id, **log.roll_back(settings.registered_model, *places)}
    candidate = versions.find(settings.candidate)
    before = log.holder(candidate.name, log.CHAMPION)
    if before == candidate.number:
        with runs.run(settings, f"promote {candidate}"):
            return log.log_unchanged(candidate)
    incumbent = log.incumbent(candidate, settings.against, champion=before)
    contenders = [candidate, incumbent] if incumbent else [candidate]
    splits = [versions.own_splits(each, settings.data_dir) for each in contenders]
    images = held_out(*splits)
    photos = labelled(settings.photos, candidate.class_names) if settings.photos else None
    criteria = Criteria(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Criteria)})
    with runs.run(settings, f"promote {candidate}"):
        decision = log.judge(contenders, images, splits[0], criteria, photos=photos)
        result = log.carry_out(candidate, decision, describe(images, splits[0]), before=before)
    if not result["promoted"]:
        raise Refused(result["reason"], result)
    return result


if __name__ == "__main__":
    cli.main(Promote, promote)
