"""Measures one cell of a benchmark in this process, which then ends.

Devices and threads are fixed at first use, and peak memory is of the whole process. What isn't known is None.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from fmnist import data, device, machine, training
from fmnist.options import parse
from fmnist.settings import PEERS, Train, Validation

if TYPE_CHECKING:
    import keras

AGREE = 0.05
"""The warm-up ends when an epoch took as long as the one before it, to this fraction."""
MAX_WARMUP = 10
LATENCY_SECONDS, MAX_LATENCIES = 2.0, 300
THROUGHPUT_IMAGES, THROUGHPUT_REPETITIONS = 10_000, 5
MATMUL_SIDE = {"cpu": 2048, "gpu": 8192}
# The second convolution of cnn64, where it spends its time.
CONVOLUTION = {"batch": 128, "side": 14, "inputs": 64, "outputs": 128, "kernel": 3}
OP_SECONDS, OP_REPETITIONS = 0.2, 7
OP = "op"


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    model: str
    """By name, or `op`: one matrix product and one convolution."""
    width: float
    device: str
    backend: str
    trainer: str
    precision: str
    batch_size: int
    batch_parts: str
    """As asked for: a number, or `auto`."""


@dataclass(frozen=True)
class Method:
    """How all cells of a benchmark are measured."""

    levels: tuple[str, ...]
    epochs: int
    warmup: int | None
    images: int
    dataset: str
    data_dir: str
    seed: int


def measure(cell: Cell, method: Method, started: float) -> dict[str, Any]:
    """The figures of a cell, seconds unless the name says otherwise.

    Args:
        cell: What to measure.
        method: How.
        started: When the parent started this process, by `time.monotonic`, which is one clock for both.

    Raises:
        FmnistError: If the device or the backend isn't there.
    """
    before = machine.state()
    device.refuse_missing(cell.device, cell.backend)
    used = device.select(cell.device, cell.backend, stock=cell.trainer == "fit")
    measured = _ops(cell, used) if cell.model == OP else _model(cell, method, used, started)
    after = machine.state()
    return {
        **measured,
        "device_name": used.name,
        "host_memory_bytes": _peak_host_memory(),
        "device_memory_bytes": _peak_device_memory(cell) if used.kind == "gpu" else None,
        "load_before": before.load,
        "load_after": after.load,
        "cpu_mhz_before": before.cpu_mhz,
        "cpu_mhz_after": after.cpu_mhz,
    }


def _model(cell: Cell, method: Method, used: device.Device, started: float) -> dict[str, Any]:
    import keras  # noqa: F401  # its import is part of the cold time

    from fmnist import engine as engines

    import_seconds = time.monotonic() - started
    names = ("model", "trainer", "backend", "precision", "batch_parts")
    texts = {name: getattr(cell, name) for name in names}
    if cell.trainer in PEERS:  # which work on whole batches, as stock fit does
        texts |= {"trainer": "fit", "backend": "tensorflow"}
    plan = training.settle(training.plan(parse(Train, texts)), used)
    splits = data.load(method.dataset, data_dir=method.data_dir, validation=Validation(1), seed=0)
    images = np.concatenate([splits.train.images, splits.validation.images])[: method.images]
    labels = np.concatenate([splits.train.labels, splits.validation.labels])[: method.images]
    start = perf_counter()
    model = plan.model.build(
        plan.model.scaled(cell.width),
        precision=cell.precision,
        seed=method.seed,
        num_classes=len(splits.class_names),
    )
    engine = engines.load(
        cell.trainer,
        cell.backend,
        model,
        recipe=dataclasses.replace(plan.recipe.plain, batch_size=cell.batch_size),
        augment=(),
        batch_parts=plan.batch_parts,
        images=images,
        labels=labels,
    )
    forward, backward = flops_per_image(model)
    result: dict[str, Any] = {
        "import_seconds": import_seconds,
        "build_seconds": perf_counter() - start,
        "num_parameters": model.count_params(),
        "inference_flops_per_image": forward,
        "training_flops_per_image": forward + backward,
        "conditions": asdict(device.conditions(used, cell.backend, batch_parts=plan.batch_parts, xla=engine.xla)),
    }
    if "epoch" in method.levels:
        warmup = [engine.train_epoch(method.seed, 0).seconds]
        while not _is_warm(warmup, method.warmup):
            warmup.append(engine.train_epoch(method.seed, len(warmup)).seconds)
        mean_watts = machine.power_meter(used.kind)
        epochs = [engine.train_epoch(method.seed, len(warmup) + n).seconds for n in range(method.epochs)]
        result |= {
            "power_watts": mean_watts(),
            "warmup_seconds": warmup,
            "warmup_agreed": _agree(warmup),
            "epoch_seconds": epochs,
            "compile_seconds": max(warmup[0] - float(np.median(epochs)), 0.0),
            # but for fit: the images lie on the device, there is nothing to wait for
            "input_wait_seconds": engine.input_wait() if hasattr(engine, "input_wait") else None,
        }
    if "inference" in method.levels:
        many = np.resize(images, (THROUGHPUT_IMAGES, *images.shape[1:]))
        seconds = [_seconds(lambda: engine.predict(many)) for _ in range(1 + THROUGHPUT_REPETITIONS)][1:]
        result |= {
            "latency_seconds": latencies(engine.predict, images),
            "inference_images_per_second": [THROUGHPUT_IMAGES / each for each in seconds],
        }
    return result


def latencies(predict: Callable[[NDArray[np.uint8]], Any], images: NDArray[np.uint8]) -> list[float]:
    """Seconds that each of many predictions of one image takes, after a few that don't count."""
    seconds = [_seconds(lambda: predict(images[:1])) for _ in range(5)][5:]
    begin = perf_counter()
    while len(seconds) < MAX_LATENCIES and (len(seconds) < 5 or perf_counter() - begin < LATENCY_SECONDS):
        seconds.append(_seconds(lambda: predict(images[:1])))
    return seconds


def _is_warm(seconds: list[float], warmup: int | None) -> bool:
    return len(seconds) >= (warmup or MAX_WARMUP) or (warmup is None and bool(_agree(seconds)))


def _agree(seconds: list[float]) -> bool | None:
    """Whether the last two epochs took alike; of one epoch nothing can be said."""
    return abs(seconds[-1] - seconds[-2]) <= AGREE * seconds[-2] if len(seconds) > 1 else None


def _ops(cell: Cell, used: device.Device) -> dict[str, Any]:
    """One matrix product, whose rate training is held against, and one convolution."""
    import keras

    dtype, side, shape = cell.precision, MATMUL_SIDE[cell.device], CONVOLUTION
    random = np.random.default_rng(0)

    def array(*sizes: int) -> Any:
        values = random.standard_normal(sizes, np.float32)
        return keras.ops.cast(keras.ops.convert_to_tensor(values), dtype)

    matrix = array(side, side)
    pixels = array(shape["batch"], shape["side"], shape["side"], shape["inputs"])
    kernel = array(shape["kernel"], shape["kernel"], shape["inputs"], shape["outputs"])
    places = shape["batch"] * shape["side"] ** 2
    convolve = partial(keras.ops.conv, pixels, kernel, padding="same", data_format="channels_last")
    xla = cell.backend == "jax"
    return {
        "matmul_flops": 2 * side**3,
        "matmul_seconds": _repeat(lambda: keras.ops.matmul(matrix, matrix)),
        "convolution_flops": 2 * places * shape["kernel"] ** 2 * shape["inputs"] * shape["outputs"],
        "convolution_seconds": _repeat(convolve),
        "conditions": asdict(device.conditions(used, cell.backend, batch_parts=1, xla=xla)),
    }


def _repeat(operation: Callable[[], Any]) -> list[float]:
    """Seconds of an operation: means over so many calls in a row that the clock and the wait don't count."""
    import keras

    def batch(calls: int) -> float:
        start = perf_counter()
        for _ in range(calls):
            result = operation()
        keras.ops.convert_to_numpy(keras.ops.cast(result[0, 0], "float32"))  # waits for the device
        return perf_counter() - start

    batch(2)
    calls = max(int(OP_SECONDS / batch(1)), 1)
    return [batch(calls) / calls for _ in range(OP_REPETITIONS)]


def flops_per_image(model: "keras.Model") -> tuple[int, int]:
    """Floating point operations of dense and convolutional layers for one image: forward, and backward.

    A multiplication and an addition count as two. Backward does for each layer the forward's work twice, for
    the weights' gradient and the inputs', but for the inputs' of the first. What works element by element,
    and the optimizer, is left out: the share of the peak comes out low by that.
    """
    forward = []
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            places = int(np.prod(layer.output.shape[1:-1]))  # 1 for a dense layer
            forward.append(2 * places * int(np.prod(layer.kernel.shape)))
    return sum(forward), 2 * sum(forward) - forward[0]


def _seconds(operation: Callable[[], Any]) -> float:
    start = perf_counter()
    operation()  # gives NumPy arrays: the device is done
    return perf_counter() - start


def _peak_host_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_device_memory(cell: Cell) -> int | None:
    from fmnist import engine

    return engine.peak_device_memory(cell.backend)
