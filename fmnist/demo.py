"""A page on which a person shows a model a photo or a drawing, and sees what it sees and says.

It asks no other host for anything: no analytics, no fonts from elsewhere, and the browser is told so too.
"""

import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import photos, prediction
from fmnist.errors import FmnistError
from fmnist.prediction import Answer

MAX_FILE_BYTES = 20 * 2**20
MAX_BODY_BYTES = 2**20  # of all that is no upload: a drawing is the largest
KEPT_SECONDS = 3600  # what was uploaded lies in a folder of the page's own, which goes with it
SEEN_SIDE, PHOTO_SIDE, CANVAS_SIDE = 280, 640, 400
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
Ask = Callable[[NDArray[np.uint8]], Answer]
"""Answers an image `(28, 28)`."""
Shown = tuple[NDArray[np.uint8] | None, NDArray[np.uint8], dict[str, float], str]


@contextmanager
def serving(ask: Ask, class_names: tuple[str, ...], title: str, *, host: str, port: int) -> Iterator[str]:
    """Serves the page while it is open; gives its address.

    Raises:
        FmnistError: If Gradio isn't installed, or the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FmnistError(
                f"port: {host}:{port} can't be listened at ({error}); type another, for example -P port={port + 1}"
            ) from None
    with tempfile.TemporaryDirectory(prefix="fmnist-demo-") as uploads:
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": uploads,
        }
        page, options = _page(ask, class_names, title)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gradio's own, of what it is made of
            page.launch(server_name=host, server_port=port, **options)
        try:
            yield f"http://{host}:{port}"
        finally:
            page.close(verbose=False)


def wait() -> None:
    """Waits until the process is told to end."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:  # as SIGTERM is, too
        return


def of_photo(path: str, ask: Ask, class_names: tuple[str, ...]) -> Shown:
    """What is shown of a photograph in a file."""
    photo = photos.read(Path(path))
    prepared = photos.prepare(photo)
    return _outlined(photo, prepared.outline), *_said(prepared.image, ask, class_names)


def of_drawing(canvas: NDArray[np.uint8] | None, ask: Ask, class_names: tuple[str, ...]) -> Shown:
    """What is shown of a drawing `(height, width, 4)`: what its lines enclose is the garment.

    Raises:
        FmnistError: If nothing is drawn.
    """
    from scipy.ndimage import binary_fill_holes

    if canvas is None:
        canvas = np.zeros((1, 1, 4), np.uint8)
    lines = (canvas[..., 3] > 127) & (canvas[..., :3].mean(axis=2) < 128)  # the paper may be white, or nothing
    if not lines.any():
        raise FmnistError("draw a garment first: its outline is enough")
    filled = np.where(binary_fill_holes(lines), 90, 255)  # a grey garment on a white wall
    drawn = np.where(lines, 30, filled).astype(np.uint8)
    prepared = photos.prepare(np.repeat(drawn[..., None], 3, axis=2))
    return None, *_said(prepared.image, ask, class_names)


def _said(
    image: NDArray[np.uint8], ask: Ask, class_names: tuple[str, ...]
) -> tuple[NDArray[np.uint8], dict[str, float], str]:
    answer = ask(image)
    large = np.kron(image, np.ones((SEEN_SIDE // len(image),) * 2, np.uint8))
    probabilities = {name: float(share) for name, share in zip(class_names, answer.probabilities, strict=True)}
    if answer.strangeness is None:
        return large, probabilities, ""
    text = f"**{prediction.STRANGE.capitalize()}**" if answer.is_strange else "Like what I was trained on"
    return (
        large,
        probabilities,
        f"{text}: {answer.strangeness:.2f} of the distance from which on images are strange.",
    )


def _outlined(photo: NDArray[np.uint8], outline: list[NDArray[np.int32]]) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    step = -(-max(photo.shape[:2]) // PHOTO_SIDE)
    picture = Image.fromarray(photo[::step, ::step])
    for polygon in outline:
        corners = [(int(x), int(y)) for x, y in polygon // step]
        ImageDraw.Draw(picture).line([*corners, corners[0]], fill=(255, 45, 149), width=3)
    return np.asarray(picture)


def _page(ask: Ask, class_names: tuple[str, ...], title: str) -> tuple[Any, dict[str, Any]]:
    """The page, and how it is to be served."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import gradio
            from starlette.middleware import Middleware
    except ImportError:
        raise FmnistError("demo: expected Gradio, which isn't installed; type pip install -e '.[demo]'") from None

    def shown(show: Callable[[Any, Ask, tuple[str, ...]], Shown], given: Any) -> Shown:
        try:
            return show(given, ask, class_names)
        except FmnistError as error:
            raise gradio.Error(str(error).removeprefix(f"{given}: "), print_exception=False) from None

    with gradio.Blocks(analytics_enabled=False, title=title, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gradio.Markdown(f"# {title}\nA photo of one garment on a plain background is seen best.")
        with gradio.Row():
            with gradio.Column():
                with gradio.Tab("Photo"):
                    photo = gradio.Image(
                        sources=["upload", "webcam", "clipboard"], type="filepath", image_mode=None, label="Photo"
                    )
                with gradio.Tab("Drawing"):
                    drawing = gradio.Sketchpad(
                        canvas_size=(CANVAS_SIDE, CANVAS_SIDE),
                        fixed_canvas=True,
                        layers=False,
                        transforms=(),
                        brush=gradio.Brush(default_size=8, colors=["#000000"], color_mode="fixed"),
                        label="Draw a garment",
                    )
                    draw = gradio.Button("What is it?", variant="primary")
            with gradio.Column():
                label = gradio.Label(num_top_classes=prediction.NUM_LIKELIEST, label="The three likeliest")
                strange = gradio.Markdown()
                buttons = ["download", "fullscreen"]  # no sharing by another host
                with gradio.Row():
                    outlined = gradio.Image(
                        label="What was cut out", buttons=buttons, format="png", interactive=False
                    )
                    seen = gradio.Image(
                        label="What the model sees", buttons=buttons, format="png", interactive=False
                    )
        for given in (photo, drawing):
            given.async_move_resource_to_block_cache = _of_no_address(
                given.async_move_resource_to_block_cache, gradio.Error
            )
        outputs = [outlined, seen, label, strange]
        photo.input(lambda path: shown(of_photo, path) if path else [None, None, None, ""], photo, outputs)
        draw.click(lambda drawn: shown(of_drawing, drawn["composite"]), drawing, outputs)
    options = {
        "prevent_thread_lock": True,
        "share": False,
        "quiet": True,
        "ssr_mode": False,
        "max_file_size": MAX_FILE_BYTES,
        "footer_links": [],
        "theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        "app_kwargs": {"middleware": [Middleware(_guarded)]},
    }
    return page, options


def _of_no_address(move: Callable[[Any], Any], error: Callable[..., Exception]) -> Callable[[Any], Any]:
    """What takes a file to a component; an address is refused, which Gradio would fetch."""

    async def refusing(path: Any) -> Any:
        if str(path).lower().startswith(("http:", "https:")):
            raise error("send the file itself: the page fetches nothing", print_exception=False)
        return await move(path)

    return refusing


def _guarded(app: Any) -> Any:
    """An ASGI application whose answers keep the browser from asking other hosts, and that takes no large bodies.

    Gradio bounds what is uploaded; this bounds all else.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        is_large = b"transfer-encoding" in headers or int(headers.get(b"content-length", 0)) > MAX_BODY_BYTES
        if is_large and scope["path"] != "/gradio_api/upload":
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await app(scope, receive, send_with_policy)

    return answer
