"""The colours of runs in MLflow's charts: a hue for each model, a shade for each seed or device."""

from fmnist import models  # noqa: F401  # fills the registry
from fmnist.registry import MODELS

TAG = "mlflow.runColor"
# Tableau's ten, which stay apart for most who see few colours, but for grey, which is for what is no model, and
# indigo in its place.
HUES = (0x4E79A7, 0xF28E2B, 0xE15759, 0x76B7B2, 0x59A14F, 0xEDC948, 0xB07AA1, 0xFF9DA7, 0x9C755F, 0x3D348B)
GREY = 0x79706E
WHITENED = (0.0, 0.3, 0.5, 0.65)


def tag(model: str, shade: int) -> dict[str, str]:
    """The tag that gives a run its colour; shades are counted from the full one, and come again."""
    names = list(MODELS)
    hue = HUES[names.index(model) % len(HUES)] if model in names else GREY
    share = WHITENED[shade % len(WHITENED)]
    parts = (hue >> 16, hue >> 8 & 255, hue & 255)
    return {TAG: "#" + "".join(f"{round(part + (255 - part) * share):02x}" for part in parts)}
