"""The page on which a person shows a model photos and drawings: opened and used in a real browser."""

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
from conftest import Store, draw_photographs, register_foreign
from test_main import free_port
from test_pages import ARGUMENTS, CHROMIUM

from fmnist import demo
from fmnist.errors import FmnistError


def test_a_port_that_is_taken_is_refused_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(FmnistError, match=rf"^port: 127\.0\.0\.1:{port} can't be .* -P port={port + 1}$"),
            demo.serving(None, (), "", host="127.0.0.1", port=port),
        ):
            pass


@pytest.fixture(scope="module")
def store(new_store: Callable[[], Store]) -> Store:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the extra demo isn't installed")
    store = new_store()
    register_foreign(store, "garments", noise=10)
    return store


@pytest.fixture(scope="module")
def served(store) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running demo, and its address."""
    command = [sys.executable, "-m", "entry_points.demo", "--model_uri", "models:/garments/1"]
    with subprocess.Popen(
        [*command, "--port", str(free_port())],
        cwd=store.folder,
        env=store.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = ""
        while not (found := re.search(r"garments/1 answers at (http://127\.0\.0\.1:\d+); Ctrl-C ends it", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process, found[1]
        process.kill()


@pytest.fixture(scope="module")
def page(served) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=[f"--{name}" for name in ARGUMENTS])
        opened = chromium.new_page(viewport={"width": 1200, "height": 900})
        opened.set_default_timeout(60_000)
        opened.hosts = set()
        opened.on("request", lambda request: opened.hosts.add(request.url.partition("://")[2].partition("/")[0]))
        opened.goto(served[1])
        yield opened
        chromium.close()


def test_a_photo_is_shown_with_what_was_cut_out_what_the_model_sees_and_the_three_likeliest(page, tmp_path):
    folder = draw_photographs(tmp_path / "photos", count=1)
    page.set_input_files("input[type=file]", folder / "Trouser" / "0.png")
    page.get_by_test_id("label-output-value").get_by_text("Trouser").wait_for()
    assert page.get_by_test_id("label-output-value").inner_text() == "Trouser"
    assert len(page.get_by_text(re.compile(r"^\d+%$")).all()) == 3
    pictures = page.locator("img[src*='/file=']")
    pictures.nth(2).wait_for()
    assert pictures.count() == 3  # the photo, the outline, what the model sees
    (size,) = {tuple(each.evaluate("it => [it.naturalWidth, it.naturalHeight]")) for each in [pictures.nth(2)]}
    assert size == (280, 280)


def test_a_drawing_is_answered(page):
    page.get_by_role("tab", name="Drawing").click()
    page.get_by_label("Brush").first.click()
    canvas = page.locator("canvas").last.bounding_box()
    legs = [
        (0.4, 0.15),
        (0.6, 0.15),
        (0.64, 0.85),
        (0.54, 0.85),
        (0.5, 0.4),
        (0.46, 0.85),
        (0.36, 0.85),
        (0.4, 0.15),
    ]
    across = min(canvas["width"], canvas["height"])
    left, top = canvas["x"] + (canvas["width"] - across) / 2, canvas["y"] + (canvas["height"] - across) / 2
    for number, (x, y) in enumerate(legs):
        page.mouse.move(left + x * across, top + y * across, steps=8)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.get_by_role("button", name="What is it?").click()
    page.locator("img[src*='/file=']").nth(2).wait_for(state="detached")  # no photo was cut
    assert page.get_by_test_id("label-output-value").inner_text() == "Trouser"


def test_a_file_that_is_too_large_is_refused(served):
    curl = shutil.which("curl")
    if not curl:
        pytest.skip("curl isn't installed")
    answers = []
    for size in (1000, demo.MAX_FILE_BYTES + 1):
        command = [curl, "-sS", "-o", "-", "-w", "%{http_code}", "-F", "files=@-;filename=a.png"]
        command.append(f"{served[1]}/gradio_api/upload")
        done = subprocess.run(command, input=bytes(size), capture_output=True, check=True)
        answers.append(done.stdout.decode()[-3:])
    assert answers == ["200", "413"]


@pytest.mark.parametrize("drawn", [False, True])
def test_an_address_is_not_fetched(served, drawn):
    photo = {"path": "https://example.invalid/a.png", "meta": {"_type": "gradio.FileData"}}
    given = {"background": None, "layers": [], "composite": photo} if drawn else photo
    call = f"{served[1]}/gradio_api/call/{'lambda_1' if drawn else 'lambda'}"
    body = json.dumps({"data": [given]}).encode()
    asked = urllib.request.Request(call, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as answer:
        assert "send the file itself: the page fetches nothing" in answer.read().decode()


@pytest.mark.parametrize("path", ["queue/join", "component_server", "run/upload"])
def test_a_large_body_that_is_no_upload_is_refused(served, path):
    with closing(HTTPConnection(served[1].removeprefix("http://"), timeout=60)) as connection:
        connection.putrequest("POST", f"/gradio_api/{path}")
        connection.putheader("Content-Length", str(demo.MAX_BODY_BYTES + 1))
        connection.endheaders()  # the answer doesn't wait for the body
        assert connection.getresponse().status == 413


def test_the_browser_asks_no_other_host_and_ctrl_c_ends_the_page(page, served):
    process, address = served
    assert {host for host in page.hosts if "." in host} == {address.removeprefix("http://")}
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    result = json.loads(out.splitlines()[-1])
    assert (process.returncode, result["model"], result["num_answers"]) == (0, "garments/1", 2)
