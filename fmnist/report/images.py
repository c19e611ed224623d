"""The section of images that models answer differently."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmnist.report.charts import swatch
from fmnist.report.groups import Group, by_data
from fmnist.report.markup import Element, element, note, section
from fmnist.report.models import Looks
from fmnist.report.records import Answers

NUM_SHOWN = 24


def disagreements(groups: Sequence[Group], looks: Looks, images: Mapping[str, NDArray[np.uint8]]) -> Element:
    """Where the first seeds of the models say different things; the test images by the data's digest."""
    parts = []
    for own in by_data(groups):
        asked = [(each, answers) for each in own if (answers := each.first.answers) is not None]
        first = own[0].first
        if len(asked) < 2:
            parts.append(
                note(
                    f"{first.dataset}: {len(asked)} of {len(own)} models kept their answers "
                    f"(test/predictions.npz), "
                    "which takes two. Runs that are trained now keep them."
                )
            )
            continue
        predicted = np.array([answers.predicted for _, answers in asked])
        label = asked[0][1].label
        differs = (predicted != predicted[0]).any(axis=0)
        text = (
            f"The {len(asked)} models, each with its lowest seed, disagree on {differs.sum():,} of "
            f"{len(label):,} test "
            f"images of {first.dataset} ({differs.mean():.1%}); all are wrong together on "
            f"{(~differs & (predicted[0] != label)).sum():,}."
        )
        parts.append(element("p", text))
        if first.digest not in images:
            command = f"mlflow run . -e preprocess -P dataset={first.dataset}"
            validation = first.run.params.get("validation")
            command += f" -P validation={validation}" if validation else ""
            parts.append(
                note(
                    "The images are not shown: this data is not prepared on this machine. To have them, type ",
                    element("code", command),
                    ", then this report again.",
                )
            )
            continue
        surest = np.sum([answers.probability for _, answers in asked], axis=0)
        kinds = np.array([len(set(column)) for column in predicted.T])
        order = np.lexsort((-surest, -kinds))
        shown = [place for place in order if differs[place]][:NUM_SHOWN]
        names = first.class_names
        pictures = [
            _picture(int(place), images[first.digest][place], names[label[place]], asked, names, looks)
            for place in shown
        ]
        parts += [
            element("ul", *pictures, class_="images"),
            note(f"The {len(shown)} on which they say most different things, and are surest of them."),
        ]
    return section("disagree", "Where do they disagree?", *parts)


def _picture(
    place: int,
    image: NDArray[np.uint8],
    label: str,
    asked: Sequence[tuple[Group, Answers]],
    names: Sequence[str],
    looks: Looks,
) -> Element:
    said = []
    for group, answers in asked:
        predicted = names[answers.predicted[place]]
        right = predicted == label
        said.append(
            element(
                "li",
                swatch(looks[group.name]),
                element("span", group.name, class_="who"),
                " ",
                element(
                    "span",
                    element("b", predicted, class_="right" if right else "wrong"),
                    f" {answers.probability[place]:.0%} ",
                    element("span", "✓" if right else "✗", aria_label="right" if right else "wrong", role="img"),
                    class_="said",
                ),
                data_group=looks[group.name].group,
            )
        )
    return element(
        "li",
        element("img", src=_png(image), alt=f"Test image {place}: {label}", width=84, height=84),
        element("div", element("strong", label), " ", element("small", f"no. {place}"), element("ul", *said)),
    )


def _png(image: NDArray[np.uint8]) -> str:
    """The image as an address that holds it."""
    from PIL import Image

    file: Any = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
