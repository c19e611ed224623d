"""`mlflow run . -e demo`: a page on which a person shows a model photos and drawings."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist import cli, data, demo  # noqa: F401  # data fills the registry of datasets
from fmnist.prediction import Answer, Seen
from fmnist.settings import Demo


def show(settings: Demo) -> dict[str, Any]:
    """Ends when the process is told to."""
    from fmnist.tracking import runs, versions

    runs.open_store()
    version = versions.find(settings.model_uri)
    served = versions.load(version, len(version.class_names))
    num_answers = 0

    def ask(image: NDArray[np.uint8]) -> Answer:
        nonlocal num_answers
        num_answers += 1
        (probabilities,) = served.predict(image[None])
        strangeness = float(served.strangeness(image[None])[0]) if served.strangeness else None
        return Answer(Seen("", image), probabilities, strangeness)

    title = f"What does {version} see?"
    with demo.serving(ask, version.class_names, title, host=settings.host, port=settings.port) as address:
        print(f"{version} answers at {address}; Ctrl-C ends it", file=sys.stderr, flush=True)
        demo.wait()
    return {"model": str(version), "address": address, "num_answers": num_answers}


if __name__ == "__main__":
    cli.main(Demo, show)
