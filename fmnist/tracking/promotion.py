"""The champion of a registered model: an alias that moves to one winner at a time, and the record of why.

Processes of one host wait for each other at a lock. Between hosts that share a server, which can't "change
it if it is still", each puts a claim and looks, after longer than a request takes, whether it is still its own.
"""

import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from fmnist import cache
from fmnist.data import Split, Splits
from fmnist.errors import FmnistError
from fmnist.evaluation.speed import latencies
from fmnist.prediction import Labelled
from fmnist.promotion import Criteria, Decision, decide, held_out, measure, note, other_dataset, overtaken, record
from fmnist.tracking import runs, versions
from fmnist.tracking.cards import with_section
from fmnist.tracking.versions import Version

CHAMPION, PREVIOUS = "champion", "previous"
CLAIM_TAG = "promotion.claim"
CLAIM_SECONDS = 2.0
HEADING = "### Promotion"


def holder(name: str, alias: str) -> str | None:
    """The number of the version that has an alias, if one has it.

    Raises:
        FmnistError: If there is no model of that name.
    """
    try:
        aliases: dict[str, Any] = mlflow.MlflowClient().get_registered_model(name).aliases
    except mlflow.MlflowException as error:
        versions.check_missing(error)
        raise FmnistError(f"no registered model {name}: {error}") from None
    return str(aliases[alias]) if alias in aliases else None


def check_comparable(name: str, splits: Splits, data_dir: str) -> None:
    """Checks, before there is a candidate, that one trained on such splits could be judged beside the champion.

    Raises:
        FmnistError: If it could not.
    """
    try:
        champion = mlflow.MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except mlflow.MlflowException as error:
        if error.error_code not in versions.NOT_THERE:
            versions.check_missing(error)
        held_out(splits)
        return
    candidate, other = splits.manifest["dataset"], champion.tags.get("dataset")
    if other and other != candidate:  # whose files need not be there to say so
        raise other_dataset(candidate, other)
    held_out(splits, versions.own_splits(versions.find(f"models:/{name}/{champion.version}"), data_dir))


def incumbent(candidate: Version, against: str, *, champion: str | None) -> Version | None:
    """The version that a candidate must beat; None where there is no champion yet.

    Raises:
        FmnistError: If `against` is neither an alias nor a number of the same model, or another than the champion,
            whose place nothing takes that wasn't compared with it.
    """
    number = against if against.isdigit() else holder(candidate.name, against)
    if number is None and against == CHAMPION:
        return None
    if number is None:
        raise FmnistError(f"against: no version of {candidate.name} has the alias {against!r}; type a number")
    found = versions.find(f"models:/{candidate.name}/{number}")
    if found.number == candidate.number:
        raise FmnistError(f"against: {candidate} can't be compared with itself; leave `against` out")
    if champion and found.number != champion:
        raise FmnistError(f"against: version {champion} is the champion; leave `against` out")
    return found


def judge(
    contenders: list[Version], images: Split, splits: Splits, criteria: Criteria, *, photos: Labelled | None = None
) -> Decision:
    """Has a candidate and, if there is one, its incumbent answer the same images; decides between them."""
    served = [versions.load(each, len(splits.class_names)) for each in contenders]
    timed = latencies([each.answer for each in served], images.images[:1].astype(np.float32))
    candidate, *incumbents = (
        measure(
            str(name),
            each.predict,
            images,
            latency=latency,
            size_bytes=each.size_bytes,
            criteria=criteria,
            photos=photos,
        )
        for name, each, latency in zip(contenders, served, timed, strict=True)
    )
    return decide(candidate, incumbents[0] if incumbents else None, criteria)


def carry_out(candidate: Version, decision: Decision, images: str, *, before: str | None) -> dict[str, Any]:
    """Logs a decision to the active run and the version, and moves the alias by it; gives it as a result.

    What is logged first says `promoting`, so that nothing that ends this early leaves a champion without a record,
    or a record of a champion that isn't.
    """
    _log_evidence(decision)
    if decision.promoted:
        _log_decision(candidate, decision, images, "promoting")
        overtaker = crown(candidate.name, candidate.number, before=before)
        if overtaker:
            decision = overtaken(decision, overtaker)
    return _log_decision(candidate, decision, images, "promoted" if decision.promoted else "refused")


def crown(name: str, number: str, *, before: str | None) -> str | None:
    """Makes a version the champion, and the one before it the previous champion.

    Gives None, or, if meanwhile another than `before` has become or is becoming champion, that one's number.
    """
    client, run_id = mlflow.MlflowClient(), mlflow.active_run().info.run_id
    lock, seconds = _lock(name)
    with cache.lock(lock):
        now = holder(name, CHAMPION)
        if now == before:
            # Source: Fischer's mutual exclusion, in Lamport 1987, https://doi.org/10.1145/7351.7352
            claim = f"{number} {run_id}"
            try:
                client.set_registered_model_tag(name, CLAIM_TAG, claim)
            except mlflow.MlflowException:  # two first claims at one moment: the store takes one of them
                client.set_registered_model_tag(name, CLAIM_TAG, claim)
            time.sleep(seconds)
            stands = client.get_registered_model(name).tags[CLAIM_TAG]
            now = holder(name, CHAMPION) if stands == claim else stands.split()[0]
        if now != before:
            return now or "none"
        if before:
            client.set_registered_model_alias(name, PREVIOUS, before)
        client.set_registered_model_alias(name, CHAMPION, number)
    return None


def _log_evidence(decision: Decision) -> None:
    """Logs what was measured to the active run."""
    found = record(decision)
    figures = {
        f"{role}/{key}": value
        for role in ("candidate", "incumbent", "comparison")
        for key, value in (found.get(role) or {}).items()
        if isinstance(value, int | float)
    }
    mlflow.log_metrics({name: float(value) for name, value in figures.items()})


def _log_decision(candidate: Version, decision: Decision, images: str, word: str) -> dict[str, Any]:
    """Logs a decision, and in a word what came of it, to the active run and the version; gives it as a result."""
    run_id = mlflow.active_run().info.run_id
    result: dict[str, Any] = {"images": images, **record(decision)}
    mlflow.log_dict(result, "decision.json")
    text = note(decision, images, word)
    mlflow.log_text(text, "decision.md")
    mlflow.set_tags({"mlflow.note.content": text, "decision": word, "reason": decision.reason})
    mlflow.set_tags({"model_uri": candidate.uri, "model_version": str(candidate)})
    _note(candidate.name, candidate.number, word, text)
    return {"run_id": run_id, **result}


def log_unchanged(candidate: Version) -> dict[str, Any]:
    """Notes on the active run that a candidate is the champion already; gives it as a result."""
    result = standing(candidate.name, candidate.number) or {}
    mlflow.set_tags({"decision": "unchanged", "mlflow.note.content": f"{candidate} is the champion already"})
    return result | {"run_id": mlflow.active_run().info.run_id}


def standing(name: str, number: str) -> dict[str, Any] | None:
    """The result of the decision that made a version the champion, if it is."""
    if holder(name, CHAMPION) != number:
        return None
    tags = mlflow.MlflowClient().get_model_version(name, number).tags
    run_id = tags.get("promotion.run", "(by hand)")
    return {"run_id": run_id, "promoted": True, "reason": f"{name}/{number} is the champion already"}


def places(name: str) -> tuple[str, str]:
    """The numbers of the champion and of the previous champion.

    Raises:
        FmnistError: If there is no previous one.
    """
    champion, previous = holder(name, CHAMPION), holder(name, PREVIOUS)
    if champion is None or previous is None or champion == previous:
        raise FmnistError(
            f"rollback: {name} has no previous champion beside a champion; promote with "
            f"-P candidate=models:/{name}/VERSION"
        )
    return champion, previous


def roll_back(name: str, before: str, previous: str) -> dict[str, Any]:
    """Makes the previous champion the champion, and this one the previous; logs it to the active run.

    Raises:
        FmnistError: If another became champion meanwhile.
    """
    change = f"version {previous} is the champion again, in place of version {before}."
    mlflow.set_tags({"mlflow.note.content": f"**Rolling back**: {change}", "decision": "rolling back"})
    overtaker = crown(name, previous, before=before)
    if overtaker:
        raise FmnistError(f"rollback: version {overtaker} became champion meanwhile; look, and type it again")
    text = f"**Rolled back**: {change}"
    mlflow.set_tags({"mlflow.note.content": text, "decision": "rolled back"})
    for number, word in ((previous, "promoted"), (before, "rolled back")):
        _note(name, number, word, text)
    return {"champion": f"{name}/{previous}", "previous": f"{name}/{before}", "reason": text}


def _note(name: str, number: str, word: str, text: str) -> None:
    """Puts a decision on a version: as a tag, and in its description in place of an earlier one."""
    client, run_id = mlflow.MlflowClient(), mlflow.active_run().info.run_id
    card = client.get_model_version(name, number).description or ""
    client.update_model_version(name, number, with_section(card, HEADING, f"{text}\n\nRun {run_id}."))
    client.set_model_version_tag(name, number, "promotion", word)
    client.set_model_version_tag(name, number, "promotion.run", run_id)


def _lock(name: str) -> tuple[Path, float]:
    """The lock of this host's promotions of a model, and how long to wait for those of other hosts."""
    uri = runs.open_store()
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///"):
        return file.with_name(f"{file.name}.promotion.lock"), 0.0
    return cache.folder() / "promotion" / f"{cache.digest([uri, name])}.lock", CLAIM_SECONDS
