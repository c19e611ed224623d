"""How long photographs take from file to 28x28: run as `python tests/photo_speed.py`; prints one line of JSON.

A drawn garment of 12 million pixels, as JPEG: the median of ten on one thread, then 300 of them by two processes.
"""

import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from fmnist.photos import prepare, read

NUM_PHOTOS = 300


def one_thread() -> None:
    cv2.setNumThreads(1)


def prepared(path: Path) -> tuple[float, float]:
    """Seconds by the clock, and of a core's work: the same where nothing else runs."""
    clock, work = time.perf_counter(), time.process_time()
    prepare(read(path))
    return time.perf_counter() - clock, time.process_time() - work


def main() -> None:
    one_thread()
    rng = np.random.default_rng(0)
    small = rng.normal(150, 25, (600, 800, 3)).clip(0, 255).astype(np.uint8)
    cv2.fillPoly(
        small, [np.array([(250, 80), (550, 80), (700, 300), (550, 320), (550, 560), (250, 560)])], (60, 40, 30)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        cv2.imwrite(str(path), cv2.resize(small, (4000, 3000)))
        prepared(path)  # loads the network
        clocks, core = zip(*(prepared(path) for _ in range(10)), strict=True)
        with ProcessPoolExecutor(2, initializer=one_thread) as pool:
            start = time.perf_counter()
            _, works = zip(*pool.map(prepared, [path] * NUM_PHOTOS), strict=True)
            together = time.perf_counter() - start
    figures = {
        "num_pixels": 12_000_000,
        "seconds_median": statistics.median(clocks),
        "core_seconds_median": statistics.median(core),
        "num_photos": NUM_PHOTOS,
        "two_processes_seconds": together,
        "two_processes_core_seconds": sum(works),
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
