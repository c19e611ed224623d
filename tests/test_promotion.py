"""Who becomes champion: the decision by tables, and on a real registry by real commands."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from conftest import Store, register_foreign, tracked_in
from PIL import Image, ImageDraw

from fmnist import cache
from fmnist.data import Split, Splits
from fmnist.errors import FmnistError, Refused
from fmnist.evaluation.speed import Latency
from fmnist.options import parse
from fmnist.promotion import Contender, Criteria, compare, decide, held_out
from fmnist.settings import Promote
from fmnist.statistics import agresti_min, mcnemar

NAME = "garments"


@pytest.mark.parametrize(
    ("one", "other", "p"),
    [
        (5, 0, 2 / 2**5),
        (6, 0, 2 / 2**6),
        (1, 4, 2 * (1 + 5) / 2**5),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemars_p_is_that_of_a_fair_coin_worked_out_by_hand(one, other, p):
    assert mcnemar(one, other) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "n", "low", "high"),
    [
        (0, 0, 100, -1.959964 / 102, 1.959964 / 102),  # half a pair of each kind is a variance of 1 / 102
        (150, 86, 1600, 0.02122, 0.05868),  # 64 / 1602 and the root of (237 / 1602 - 0.03995**2) / 1602
    ],
)
def test_agresti_and_mins_interval_is_that_worked_out_by_hand(one, other, n, low, high):
    assert agresti_min(one, other, n) == pytest.approx((low, high), abs=5e-6)


def contender(name: str, right: np.ndarray, *, milliseconds: float = 1.0, size_bytes: int = 1000) -> Contender:
    latency = Latency(((0.99 * milliseconds, milliseconds, 1.01 * milliseconds),) * 2)
    return Contender(name, right, 0.02, 0.6, latency, size_bytes, photos=0.75)


def pair(only_candidate: int, only_incumbent: int, **candidate: float) -> tuple[Contender, Contender]:
    """Two contenders on 1,000 images, of which both get half of the others right."""
    right = np.zeros((2, 1000), bool)
    right[0, :only_candidate] = True
    right[1, only_candidate : only_candidate + only_incumbent] = True
    right[:, 500:] = True
    return contender("candidate", right[0], **candidate), contender("incumbent", right[1])


@pytest.mark.parametrize(
    ("only_candidate", "only_incumbent", "candidate", "margin", "promoted", "reason"),
    [
        (40, 10, {}, 0, True, "better than incumbent: +3.00 points on 1,000 images"),
        (5, 0, {}, 0, False, "not shown to be better than incumbent, and neither faster nor smaller"),
        (12, 10, {}, 0, False, "not shown to be better than incumbent, nor to be as good within the margin of 0"),
        (10, 40, {"milliseconds": 0.1}, 0.02, False, "not shown to be better than incumbent, nor to be as good"),
        (
            10,
            12,
            {"milliseconds": 0.5},
            0.02,
            True,
            "faster than incumbent, and not worse by more than the margin",
        ),
        (10, 12, {"size_bytes": 500}, 0.02, True, "smaller than incumbent"),
        (10, 12, {"milliseconds": 0.5, "size_bytes": 500}, 0.02, True, "faster and smaller than incumbent"),
        (10, 12, {"milliseconds": 0.5}, 0, False, "not shown to be better than incumbent, nor to be as good"),
        (10, 12, {}, 0.02, False, "not shown to be better than incumbent, and neither faster nor smaller"),
        (0, 0, {}, 0.002, False, "not shown to be better than incumbent, and neither faster nor smaller"),
        (0, 0, {"milliseconds": 0.5}, 0.002, True, "faster than incumbent"),
        (0, 0, {"milliseconds": 0.5}, 0.0019, False, "not shown to be better than incumbent, nor to be as good"),
        (0, 0, {"milliseconds": 0.97, "size_bytes": 960}, 0.002, False, "not shown to be better"),
        (0, 0, {"milliseconds": 40, "size_bytes": 500}, 0.02, False, "not shown .* and smaller but slower"),
        (0, 0, {"milliseconds": 0.5, "size_bytes": 2000}, 0.02, False, "not shown .* and faster but larger"),
        (0, 0, {"milliseconds": 1.02, "size_bytes": 500}, 0.02, True, "smaller than incumbent"),
    ],
)
def test_a_candidate_is_promoted_only_if_it_is_better_or_as_good_and_faster_or_smaller(
    only_candidate, only_incumbent, candidate, margin, promoted, reason
):
    decision = decide(*pair(only_candidate, only_incumbent, **candidate), Criteria(margin=margin))
    assert decision.promoted == promoted
    assert re.match(reason.replace("+", r"\+"), decision.reason)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_latency_ms": 0.5}, "median latency in ms 1, at most 0.5 allowed"),
        ({"max_calibration_error": 0.01}, "calibration error 2.00%, at most 1.00% allowed"),
        ({"min_robustness": 0.7}, "robustness 60.00%, at least 70.00% allowed"),
        ({"min_photos": 0.8}, "accuracy on photographs 75.00%, at least 80.00% allowed"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_limit_that_is_not_met_refuses_the_best_candidate_and_the_first_one(limits, reason, first):
    candidate, incumbent = pair(40, 10)
    decision = decide(candidate, None if first else incumbent, Criteria(**limits))
    assert not decision.promoted
    assert decision.reason.startswith(reason)
    met = Criteria(max_latency_ms=1.1, max_calibration_error=0.03, min_robustness=0.5)
    assert decide(candidate, None if first else incumbent, met).promoted


def test_the_bootstraps_interval_is_that_of_the_paired_differences():
    found = compare(*pair(40, 10))
    # The variance of a difference that is 1 in 4 %, -1 in 1 % and else 0: 0.05 - 0.03**2.
    half = 1.96 * np.sqrt((0.05 - 0.03**2) / 1000)
    assert (found.ci95_low, found.ci95_high) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-3)


def splits(train: range, validation: range, dataset: str = "folder") -> Splits:
    """Splits whose images are numbered."""

    def split(numbers: range) -> Split:
        images = np.zeros((len(numbers), 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.array(numbers) // 256, np.array(numbers) % 256
        return Split(images, np.zeros(len(numbers), np.uint8))

    return Splits(split(train), split(validation), split(range(0)), (), {"dataset": dataset})


def test_only_images_that_neither_was_trained_on_decide():
    images = held_out(splits(range(0, 800), range(800, 1000)), splits(range(100, 850), range(0, 100))).images
    assert (images[:, 0, 0] * 256.0 + images[:, 0, 1]).tolist() == list(range(850, 1000))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (splits(range(0, 950), range(950, 1000)), "expected at least 100 images .* there are 50; train both with"),
        (
            splits(range(0, 800), range(800, 1000), "mnist"),
            "the candidate was trained on folder, the other on mnist",
        ),
        (
            replace(splits(range(0, 800), range(800, 1000)), class_names=("Coat", "hat")),
            "the two were trained on different classes, .* the other on Coat, hat: ",
        ),
    ],
)
def test_two_that_have_too_little_new_to_both_are_not_compared(other, message):
    with pytest.raises(FmnistError, match=message):
        held_out(splits(range(0, 800), range(800, 1000)), other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "candidate: expected a version, or rollback=true"),
        ({"candidate": "models:/a/1", "rollback": "true"}, "candidate: expected a version, or rollback=true"),
        ({"candidate": "runs:/abc/model"}, "candidate: expected models:/NAME/VERSION"),
        ({"candidate": "models:/a/1", "max_latency_ms": "fast"}, "max_latency_ms: expected a number above 0"),
        ({"candidate": "models:/a/1", "min_robustness": "0"}, "min_robustness: expected a number above 0"),
        ({"candidate": "models:/a/1", "min_photos": "0.6"}, "min_photos: expected photographs to demand it of"),
        ({"candidate": "models:/a/1", "margin": "-1"}, "margin: expected at least 0"),
    ],
)
def test_what_makes_no_promotion_is_refused_at_the_door(given, message):
    with pytest.raises(FmnistError, match=message):
        parse(Promote, given)


# A registry of models made with mlflow.pyfunc alone: 1 poor, 2 good, 3 like 2, 4 of unknown training, 5 better.


@pytest.fixture(scope="module")
def store(new_store: Callable[[], Store]) -> Store:
    store = new_store()
    for noise, known in ((90, True), (30, True), (30, True), (0, False), (0, True)):
        register_foreign(store, NAME, noise=noise, known=known)
    return store


def promoting(store: Store, **parameters: str) -> list[str]:
    pairs = [text for name, value in parameters.items() for text in (f"--{name}", value)]
    return [sys.executable, "-m", "entry_points.promote", *pairs]


def aliases(store: Store) -> dict[str, str]:
    return {name: str(number) for name, number in store.client.get_registered_model(NAME).aliases.items()}


def result_of(done: subprocess.CompletedProcess[str], code: int = 0) -> dict:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first(store):
    with tracked_in(store):
        from entry_points.promote import promote

        return promote(Promote(candidate=f"models:/{NAME}/1")), aliases(store)


@pytest.fixture(scope="module")
def better(store, first):
    with tracked_in(store):
        from entry_points.promote import promote

        return promote(Promote(candidate=f"models:/{NAME}/2")), aliases(store)


@pytest.fixture(scope="module")
def refused(store, better):
    return store.mlflow_run("promote", candidate=f"models:/{NAME}/3"), aliases(store)


def test_the_first_version_becomes_champion_by_itself(first):
    result, after = first
    assert result["promoted"]
    assert result["reason"].startswith("the first champion; ")
    assert after == {"champion": "1"}


def test_a_better_version_becomes_champion_and_the_old_one_previous(better):
    result, after = better
    assert after == {"champion": "2", "previous": "1"}
    found = result["comparison"]
    assert found["num_images"] == 2000
    assert found["p"] == mcnemar(found["only_candidate"], found["only_incumbent"]) < 0.05
    assert found["difference"] == pytest.approx(result["candidate"]["accuracy"] - result["incumbent"]["accuracy"])
    assert 0 < found["ci95_low"] < found["difference"] < found["ci95_high"]


def test_a_decision_is_a_run_with_its_evidence_and_a_note_on_the_version(store, better):
    result, _ = better
    run = store.client.get_run(result["run_id"])
    assert (run.info.status, run.data.tags["decision"]) == ("FINISHED", "promoted")
    assert run.data.metrics["comparison/p"] == result["comparison"]["p"]
    assert {"decision.json", "decision.md"} <= store.artifacts(result["run_id"])
    version = store.client.get_model_version(NAME, "2")
    assert version.description.startswith("### Promotion\n\n**Promoted**: better than garments/1: +")
    assert "2,000 images of the candidate's validation split of synthetic" in version.description
    assert "The test split took no part." in version.description
    assert (version.tags["promotion"], version.tags["promotion.run"]) == ("promoted", result["run_id"])


def test_a_refusal_leaves_the_champion_says_why_and_ends_its_run_as_finished(store, refused):
    done, after = refused
    assert after == {"champion": "2", "previous": "1"}
    assert (
        f"refused: not shown to be better than {NAME}/2, nor to be as good within the margin of 0" in done.stderr
    )
    result = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    give_up = time.monotonic() + 60
    while store.client.get_run(result["run_id"]).info.status != "FINISHED":  # the launcher has written FAILED
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert store.client.get_run(result["run_id"]).data.tags["reason"] == result["reason"]
    assert store.client.get_model_version(NAME, "3").tags["promotion"] == "refused"


def test_photographs_can_be_demanded_and_are_answered_by_both(store, better, tmp_path):
    from entry_points.promote import promote

    for label, folder in enumerate(("t-shirt", "trouser", "things")):
        (tmp_path / folder).mkdir()
        for shade in (60, 90):  # trousers on a wall, wherever they lie
            picture = Image.new("RGB", (90, 120), (200, 190, 170))
            legs = [(30, 18), (60, 18), (64, 105), (50, 105), (45, 45), (40, 105), (26, 105)]
            ImageDraw.Draw(picture).polygon(legs, fill=(shade, 40 + label, 90))
            picture.save(tmp_path / folder / f"{shade}.png")
    with tracked_in(store):
        asked = Promote(candidate=f"models:/{NAME}/3", photos=str(tmp_path), min_photos=0.6)
        with pytest.raises(Refused, match=r"^accuracy on photographs 50.00%, at least 60.00% allowed; ") as caught:
            promote(asked)
        assert caught.value.result["incumbent"]["photos"] == 0.5
        (tmp_path / "trouser" / "note.txt").write_text("no photo")
        with pytest.raises(FmnistError, match=r"^photos: .*note\.txt: .*; all of them must be usable$"):
            promote(asked)
        with pytest.raises(FmnistError, match=r"^photos: expected folders in .* that are named after classes"):
            promote(Promote(candidate=f"models:/{NAME}/3", photos=str(tmp_path / "things")))


def test_a_refusal_exits_with_code_3(store, better):
    result = result_of(store.here("promote", candidate=f"models:/{NAME}/1", margin="0.001"), code=3)
    assert not result["promoted"]
    assert re.match(
        r"not shown to be better than garments/2, nor to be as good within the margin", result["reason"]
    )


def test_a_version_of_unknown_training_is_refused_in_one_line(store, better):
    from entry_points.promote import promote

    with (
        tracked_in(store),
        pytest.raises(FmnistError, match="isn't known which images it was trained on") as caught,
    ):
        promote(Promote(candidate=f"models:/{NAME}/4"))
    assert "\n" not in str(caught.value)


def test_the_champion_put_forward_again_stays_as_it_is(store, refused):
    from entry_points.promote import promote

    with tracked_in(store):
        result = promote(Promote(candidate=f"models:/{NAME}@champion"))
    assert result["reason"] == f"{NAME}/2 is the champion already"


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("1", "against: version 2 is the champion; leave `against` out"),
        ("previous", "against: version 2 is the champion; leave `against` out"),
        ("3", f"against: {NAME}/3 can't be compared with itself; leave `against` out"),
        ("03", f"against: {NAME}/3 can't be compared with itself; leave `against` out"),
        ("own", f"against: {NAME}/3 can't be compared with itself; leave `against` out"),
    ],
)
def test_no_champion_falls_that_was_not_compared_with(store, refused, against, message):
    from entry_points.promote import promote

    store.client.set_registered_model_alias(NAME, "own", "3")
    with tracked_in(store), pytest.raises(FmnistError, match=f"^{message}$"):
        promote(Promote(candidate=f"models:/{NAME}/3", against=against))
    store.client.delete_registered_model_alias(NAME, "own")
    assert aliases(store) == {"champion": "2", "previous": "1"}


@pytest.mark.parametrize("moved", [False, True])
def test_a_promotion_that_is_interrupted_leaves_no_champion_without_its_record(store, monkeypatch, moved):
    from entry_points.promote import promote
    from fmnist.tracking import promotion as log

    name, crown = f"interrupted-{moved}", log.crown
    register_foreign(store, name, noise=30)

    def interrupted(*place: str, before: str | None) -> None:
        if moved:
            crown(*place, before=before)
        raise KeyboardInterrupt

    with tracked_in(store):
        monkeypatch.setattr(log, "crown", interrupted)
        with pytest.raises(KeyboardInterrupt):
            promote(Promote(candidate=f"models:/{name}/1"))
        version = store.client.get_model_version(name, "1")
        run_id = version.tags["promotion.run"]
        assert version.description.startswith("### Promotion\n\n**Promoting**: the first champion; ")
        assert store.client.get_run(run_id).info.status == "KILLED"
        assert "decision.json" in store.artifacts(run_id)
        monkeypatch.setattr(log, "crown", crown)
        again = promote(Promote(candidate=f"models:/{name}/1"))
    assert again["promoted"]
    if moved:
        assert again["reason"] == f"{name}/1 is the champion already"
    else:
        assert store.client.get_model_version(name, "1").description.startswith("### Promotion\n\n**Promoted**: ")
    assert str(store.client.get_registered_model(name).aliases["champion"]) == "1"


def test_the_size_of_a_version_is_that_of_the_file_that_is_served(store):
    from fmnist.tracking import versions

    register_foreign(store, "sizes", noise=30)
    with tracked_in(store):
        version = versions.find("models:/sizes/1")
        (folder,) = store.folder.rglob(f"{version.model_id}/artifacts")
        expected = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        assert versions.load(version, 10).size_bytes == pytest.approx(expected, abs=100)  # MLflow notes its name
        (folder / "data").mkdir()
        for name, size in (("model.keras", 300), ("model.tflite", 200)):
            (folder / "data" / name).write_bytes(bytes(size))
            assert versions.load(version, 10).size_bytes == size


class Failing(BaseHTTPRequestHandler):
    """Answers whatever is asked with HTTP 500."""

    def do_GET(self) -> None:
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_fails_is_not_taken_for_one_that_lacks_the_version(store, monkeypatch):
    import mlflow

    from fmnist.tracking import pipeline, promotion, versions

    trained = {"registered": f"{NAME}/99"}
    with tracked_in(store):
        assert not pipeline.is_registered(trained)
        assert versions._training("0" * 32) is None
        with pytest.raises(FmnistError, match=r"^no registered model nothing: "):
            promotion.holder("nothing", "champion")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with HTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{server.server_port}")
        try:
            for ask in (
                lambda: pipeline.is_registered(trained),
                lambda: versions._training("0" * 32),
                lambda: promotion.holder(NAME, "champion"),
            ):
                with pytest.raises(FmnistError, match=r"^MLflow at http://127\.0\.0\.1:\d+ doesn't answer: "):
                    ask()
        finally:
            mlflow.set_tracking_uri(None)
            server.shutdown()


def test_a_rollback_without_a_previous_champion_is_refused_before_a_run_begins(store):
    from entry_points.promote import promote

    store.client.create_registered_model("coats")
    before = len(store.client.search_runs([store.experiment]))
    with tracked_in(store), pytest.raises(FmnistError, match="rollback: coats has no previous champion"):
        promote(Promote(rollback=True, registered_model="coats"))
    assert len(store.client.search_runs([store.experiment])) == before


def test_a_rollback_swaps_champion_and_previous_and_back_again(store, refused):
    from entry_points.promote import promote

    with tracked_in(store):
        settings = Promote(rollback=True, registered_model=NAME)
        assert promote(settings)["champion"] == f"{NAME}/1"
        assert aliases(store) == {"champion": "1", "previous": "2"}
        assert store.client.get_model_version(NAME, "2").tags["promotion"] == "rolled back"
        assert promote(settings)["champion"] == f"{NAME}/2"
    assert aliases(store) == {"champion": "2", "previous": "1"}


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(store, refused):
    register_foreign(store, NAME, noise=0)
    commands = [promoting(store, candidate=f"models:/{NAME}/{number}") for number in (5, 6)]
    with cache.lock(store.folder / "mlflow.db.promotion.lock"):  # until both have judged
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [
            subprocess.Popen(command, cwd=store.folder, env=store.environment, **pipes) for command in commands
        ]
        query = "metrics.`comparison/num_images` > 0 and attributes.status = 'RUNNING'"
        while len(store.client.search_runs([store.experiment], query)) < 2:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
    outputs = [process.communicate() for process in processes]
    results = {
        process.returncode: json.loads(out.splitlines()[-1])
        for process, (out, _) in zip(processes, outputs, strict=True)
    }
    assert set(results) == {0, 3}
    winner = results[0]["candidate"]["version"].split("/")[1]
    assert aliases(store) == {"champion": winner, "previous": "2"}
    assert results[3]["reason"].startswith(f"version {winner} became champion while this was judged")
