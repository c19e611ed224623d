"""Measures what could serve a model: LiteRT, ONNX Runtime and TensorFlow's compiled call, side by side.

Prints a table, and JSON last. `python tests/serving_runtimes.py [models joined by commas] [batch sizes]`; not
collected by pytest. ONNX Runtime takes part where onnxruntime, onnx and tf2onnx are installed; the project needs
none of them.

Each model is built for float32 and for bfloat16 and trained for a few batches; "trained in bfloat16" is what the
project saves of the second: its float32 weights, computed with in float32.
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from fmnist import machine, synthetic
from fmnist.models import MODELS
from fmnist.serving.conversion import as_float32, to_litert

NUM_ROUNDS, ROUND_SECONDS = 5, 0.2
Call = Callable[[np.ndarray], np.ndarray]


def litert(content: bytes, num_threads: int) -> Call:
    interpreters: dict[int, Interpreter] = {}

    def call(images: np.ndarray) -> np.ndarray:
        interpreter = interpreters.get(len(images))
        if interpreter is None:
            interpreter = interpreters[len(images)] = Interpreter(model_content=content, num_threads=num_threads)
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return call


def onnx(model: keras.Model, num_threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        model.export(path, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(path, options)
    (name,) = [each.name for each in session.get_inputs()]
    return lambda images: session.run(None, {name: images})[0]


def compiled(model: keras.Model) -> Call:
    function = tf.function(lambda pixels: model(pixels, training=False), autograph=False)
    return lambda images: function(tf.constant(images)).numpy()


LOADING = """
import sys, time, numpy, psutil
pixels = numpy.zeros((1, 28, 28), numpy.float32)
before, start = psutil.Process().memory_info().rss, time.perf_counter()
if sys.argv[1].endswith("onnx"):
    import onnxruntime
    onnxruntime.InferenceSession(sys.argv[1]).run(None, {"pixels": pixels})
else:
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
    interpreter.invoke()
print(time.perf_counter() - start, (psutil.Process().memory_info().rss - before) / 2**20)
"""


def print_loading(model: keras.Model, has_onnx: bool) -> None:
    """What a process that has NumPy takes to load a runtime and a model, and to answer once."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "model.tflite"]
        paths[0].write_bytes(to_litert(model))
        if has_onnx:
            paths.append(Path(folder) / "model.onnx")
            model.export(str(paths[1]), format="onnx", verbose=False)
        for path in paths:
            starts = []
            for _ in range(NUM_ROUNDS):
                command = [sys.executable, "-c", LOADING, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                starts.append([float(text) for text in done.stdout.split()])
            seconds, mebibytes = (statistics.median(values) for values in zip(*starts, strict=True))
            print(f"loading {path.name}: {seconds:.3f} s, {mebibytes:.1f} MiB, median of {NUM_ROUNDS} starts")


def trained(name: str, precision: str) -> keras.Model:
    """A model after ten updates, so that its probabilities are not all alike."""
    images, labels, *_ = synthetic.draw()
    model = MODELS[name].build(MODELS[name].hyperparameters(""), precision=precision, seed=0)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    for start in range(0, 320, 32):
        model.train_on_batch(images[start : start + 32].astype(np.float32), labels[start : start + 32])
    return model


def milliseconds(call: Call, images: np.ndarray) -> list[float]:
    """The time of one call, a median of each round."""
    call(images)
    start = perf_counter()
    call(images)
    count = max(1, int(ROUND_SECONDS / (perf_counter() - start)))
    rounds = []
    for _ in range(NUM_ROUNDS):
        times = []
        for _ in range(count):
            start = perf_counter()
            call(images)
            times.append(1e3 * (perf_counter() - start))
        rounds.append(statistics.median(times))
    return rounds


def main() -> None:
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else sorted(MODELS)
    batches = [int(text) for text in sys.argv[2].split(",")] if len(sys.argv) > 2 else [1, 8, 32, 256]
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnxruntime", "tf2onnx"))
    packages = ("ai-edge-litert", "tensorflow-cpu", "keras", *(("onnxruntime", "tf2onnx") if has_onnx else ()))
    print(
        f"{machine.cpu_name()}, {machine.num_threads()} threads, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
    )
    print(f"milliseconds of a call: median (min-max) of the medians of {NUM_ROUNDS} rounds")
    small = trained("lenet", "float32")
    small(np.zeros((1, 28, 28), np.float32))
    print_loading(small, has_onnx)
    rows: list[dict[str, Any]] = []
    for name in names:
        for precision in ("float32", "bfloat16"):
            model = trained(name, precision)
            # Trained in bfloat16, the same graph has other weights: one thread shows as much.
            threads = sorted({1, machine.num_threads() if precision == "float32" else 1})
            saved = as_float32(model)
            content = to_litert(saved)
            calls = {f"LiteRT, {num} thread(s)": litert(content, num) for num in threads}
            if has_onnx:
                saved(np.zeros((1, 28, 28), np.float32))
                calls |= {f"ONNX Runtime, {num} thread(s)": onnx(saved, num) for num in threads}
            calls["compiled call"] = compiled(saved)
            if precision == "bfloat16":
                calls["compiled call in bfloat16"] = compiled(model)
            for batch in batches:
                images = np.random.default_rng(batch).integers(0, 256, (batch, 28, 28)).astype(np.float32)
                reference = np.asarray(saved(images, training=False))
                for runtime, call in calls.items():
                    rounds = milliseconds(call, images)
                    row = {
                        "model": name,
                        "trained in": precision,
                        "runtime": runtime,
                        "batch": batch,
                        "ms": statistics.median(rounds),
                        "min": min(rounds),
                        "max": max(rounds),
                        "difference": float(np.abs(call(images) - reference).max()),
                    }
                    rows.append(row)
                    print(
                        f"{name:12}{precision:9}{runtime:26}{batch:4}  {row['ms']:9.3f} "
                        f"({row['min']:.3f}-{row['max']:.3f})  differs by {row['difference']:.1e}",
                        flush=True,
                    )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
