"""`report` on a store of real runs, and its page in a real browser."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Store, tracked_in
from test_pages import ARGUMENTS, CHROMIUM

from entry_points.train import train
from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.report.groups import groups
from fmnist.settings import Report, Train

SECTIONS = [
    *("leaderboard", "costs", "curves", "confusion", "disagree", "records", "speed", "search", "claims"),
    "provenance",
]


@dataclass
class Reported:
    """A store of two seeds of an MLP, LeNet, and a run that never ended; and the report on it."""

    store: Store
    repeats: dict[str, Any]
    lenet: dict[str, Any]
    result: dict[str, Any]
    file: Path


@pytest.fixture(scope="module")
def reported(new_store: Callable[[], Store], cpu: None) -> Reported:
    store = new_store()
    with tracked_in(store):
        quick = {"dataset": "synthetic", "registered_model": "none", "device": "cpu", "batch_parts": "1"}
        repeats = train(parse(Train, quick | {"model": "mlp", "epochs": "2", "repeats": "2"}))
        lenet = train(parse(Train, quick | {"model": "lenet", "epochs": "2"}))
        store.client.create_run(store.experiment)
    file = store.folder / "out.html"
    done = store.mlflow_run("report", to=file)
    assert done.returncode == 0, done.stderr
    return Reported(store, repeats, lenet, json.loads(done.stdout.splitlines()[-1]), file)


def test_the_result_says_what_is_on_the_page(reported):
    assert reported.result == {"report": str(reported.file), "num_runs": 3, "num_models": 2}


def test_children_of_repeats_are_members_and_their_parent_is_none(reported):
    from fmnist.tracking.gather import gather

    with tracked_in(reported.store):
        found = {each.first.model: each for each in groups(gather("", ()).trainings)}
        seeds = {name: [each.seed for each in group.members] for name, group in found.items()}
        assert seeds == {"mlp": [0, 1], "lenet": [0]}
        assert found["mlp"].accuracy.mean == pytest.approx(reported.repeats["test_accuracy"]["mean"])
        command = found["mlp"].first.run.command
        assert {"model=mlp", "epochs=2", "repeats=2", "dataset=synthetic"} <= set(command.split())
        (only,) = gather("", (reported.lenet["run_id"],)).trainings
        assert only.run.run_id == reported.lenet["run_id"]
        assert len(gather("tests", (reported.repeats["run_id"],)).trainings) == 2


def test_a_run_beside_its_own_import_counts_once(reported):
    from fmnist.tracking.gather import gather

    client = reported.store.client
    original = client.get_run(reported.lenet["run_id"])
    tags = {**original.data.tags, "bundle.run": original.info.run_id}
    twin = client.create_run(reported.store.experiment, tags=tags).info.run_id
    for name, value in original.data.params.items():
        client.log_param(twin, name, value)
    client.log_metric(twin, "test/accuracy", 0.1)
    client.set_terminated(twin)
    with tracked_in(reported.store):
        counted = [each.run.run_id for each in gather("", ()).trainings]
    assert len(counted) == 3
    assert reported.lenet["run_id"] in counted
    client.delete_run(twin)


def test_a_command_is_known_of_a_run_that_is_older_than_an_option():
    from fmnist.tracking.exports import command

    params = {"model": "mlp", "repeats": "1"}
    assert command({"entry_point": "train"}, params) == "mlflow run . -e train -P model=mlp"


def test_a_command_is_told_as_it_was_typed_and_not_as_mlflows_launcher_quotes_it():
    from fmnist.tracking.exports import command

    params = {"model": "mlp", "data_dir": "''", "hyper": "'dense=64;activation=relu'"}
    expected = "mlflow run . -e train -P model=mlp -P 'hyper=dense=64;activation=relu'"
    assert command({"entry_point": "train"}, params) == expected


def test_a_run_without_its_file_is_named_in_one_line(new_store):
    from fmnist.tracking.gather import gather

    store = new_store()
    run_id = store.client.create_run(store.experiment).info.run_id
    store.client.log_metric(run_id, "num_measured", 1)
    store.client.set_terminated(run_id)
    with (
        tracked_in(store),
        pytest.raises(FmnistError, match=f"^run {run_id} can't be read whole: .*-P runs=ID,ID$"),
    ):
        gather("", ())


@pytest.mark.parametrize(
    ("experiment", "runs", "message"),
    [
        ("tezts", (), "unknown experiment 'tezts'. Did you mean 'tests'?"),
        ("", ("0" * 32,), "runs: expected ids of runs in this store"),
        ("Default", (), "report: expected finished runs in experiment 'Default', found no runs"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(reported, experiment, runs, message):
    from fmnist.tracking.gather import gather

    with tracked_in(reported.store), pytest.raises(FmnistError) as caught:
        gather(experiment, runs)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_store_without_a_finished_run_gives_exit_code_2_and_no_file(new_store):
    store = new_store()
    store.client.create_run(store.experiment)
    done = store.here("report")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "1 runs, none of them a finished training" in done.stderr
    assert not (store.folder / "report.html").exists()


@pytest.mark.parametrize(
    ("texts", "message"),
    [({"to": "nowhere/report.html"}, "to: expected a file in a folder"), ({"runs": "abc"}, "runs: expected ids")],
)
def test_a_file_or_an_id_that_can_not_be_is_refused_before_the_store_is_opened(texts, message):
    with pytest.raises(FmnistError, match=message):
        parse(Report, texts)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=[f"--{name}" for name in ARGUMENTS])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, reported) -> Iterator[Any]:
    """The page; in the end it must have asked for nothing, and said nothing on the console."""
    heard: list[str] = []
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    opened.on("console", lambda message: heard.append(message.text))
    opened.on("pageerror", lambda error: heard.append(str(error)))
    opened.on("request", lambda request: heard.append(request.url))
    opened.goto(reported.file.as_uri())
    yield opened
    opened.close()
    assert [each for each in heard if not each.startswith(("data:", reported.file.as_uri()))] == []


def test_every_section_is_there_with_the_numbers_of_the_store(page, reported):
    assert [each.get_attribute("id") for each in page.query_selector_all("main > section")] == SECTIONS
    board = page.inner_text("#leaderboard")
    assert f"{100 * reported.lenet['test_accuracy']:.2f}" in board
    assert f"{100 * reported.repeats['test_accuracy']['mean']:.2f}" in board
    assert page.locator("#disagree img").count() > 0
    sources = page.inner_text("#provenance")
    assert reported.lenet["run_id"] in sources
    assert "2 runs that failed, were killed or still run" in sources  # that of the report itself is one


def test_the_filter_hides_a_model_everywhere(page):
    rows = page.locator("#leaderboard .scroll").first.locator("tbody tr:visible")
    group = page.get_by_label("lenet").first.get_attribute("value")
    assert rows.count() == 2
    assert page.locator(f"[data-group='{group}']:visible").count() > 10
    page.get_by_label("lenet").first.uncheck()
    assert rows.count() == 1
    assert "mlp" in rows.first.inner_text()
    assert page.locator(f"[data-group='{group}']:visible").count() == 0


def test_a_mark_says_what_is_behind_it_under_the_pointer_and_in_focus(page):
    tip = page.locator("#tip")
    assert not tip.is_visible()
    page.locator("#costs .mark .shape").first.hover()
    for word in ("test accuracy", "n = ", "seed", "cpu: ", "keras", "optimizer"):
        assert word in tip.inner_text()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    page.locator("#costs .mark").last.focus()
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_difference_of_a_matrix_with_itself_is_nothing(page):
    cells = page.locator("[data-matrix='A−B'] tbody td")
    assert len(set(cells.all_inner_texts())) > 1
    for select in page.locator("#confusion select").all():
        select.select_option(index=0)
    assert (cells.count(), set(cells.all_inner_texts())) == (100, {"·"})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_follow_the_system_and_the_switch_and_break_no_rule_of_axe(page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe isn't installed").Axe()
    page.emulate_media(color_scheme=scheme)
    page.reload()

    def brightness() -> int:
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))))

    assert (brightness() > 380) == (scheme == "light")
    found = axe.run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    page.click("#theme")
    assert (brightness() > 380) == (scheme == "dark")


def test_a_phone_scrolls_tables_and_not_the_page(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#leaderboard .scroll").first.evaluate("each => each.scrollWidth > each.clientWidth")


def test_in_print_all_is_there_and_nothing_is_cut_off(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 720, "height": 1000})
    assert not page.locator("nav").is_visible()
    assert page.locator(".filter").is_visible()  # the key of the colours
    assert page.evaluate("document.documentElement.scrollWidth") == 720
    assert page.pdf().startswith(b"%PDF")


def test_the_keyboard_comes_first_to_the_link_that_skips_to_the_report(page):
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"
