"""Makes the pictures of MLflow's pages in the README, of what is in the store that MLFLOW_TRACKING_URI names.

Those that are here were made after these commands, with FMNIST_DATA_DIR set:

    for model in mlp mlp_dropout lenet; do
        ./run train -P model=$model -P dataset=fashion-mnist -P device=cpu -P epochs=5 -P repeats=2
    done
    ./run test -k nothing    # for what the next needs: playwright; and Chromium is on the PATH
    ./run python docs/pictures/make.py
"""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from fmnist.tracking import pages

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDTH, HEIGHT = 1480, 1120
NUM_COLORS = 128


@contextmanager
def server() -> Iterator[str]:
    """The address of MLflow's pages on the store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "fmnist.tracking.ui", "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        while not pages.answers(f"{address}/health"):
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def save(page: Page, name: str) -> None:
    """Saves what is right of MLflow's menu and above its round button, with few colours."""
    page.wait_for_timeout(4000)  # charts move to their place
    left = round(page.get_by_text("Runs", exact=True).last.bounding_box()["x"]) - 60
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop((left, 0, WIDTH, HEIGHT - 60))
    shot.quantize(NUM_COLORS, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)
    print(HERE / f"{name}.png", (HERE / f"{name}.png").stat().st_size // 1000, "kB")


def main() -> None:
    experiment = mlflow.MlflowClient().get_experiment_by_name("train").experiment_id
    with server() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
        # MLflow's own assistant opens by itself at the first visit and takes a quarter of the page.
        context.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        page = context.new_page()
        page.goto(f"{address}/{pages.experiment_path(experiment, view='compare-models')}")
        page.get_by_text("matching runs").wait_for()
        save(page, "compare-models")
        browser.close()


if __name__ == "__main__":
    main()
