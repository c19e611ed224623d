"""Elements of a page, whose texts are escaped whatever they hold."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree import ElementTree

Element = ElementTree.Element
Child: TypeAlias = "Element | str | Iterable[Child] | None"


def element(name: str, /, *children: Child, **attributes: object) -> Element:
    """An element; `class_` is the attribute class, `data_tip` is data-tip; what is None or False is left out."""
    made = Element(name)
    for key, value in attributes.items():
        if value is not None and value is not False:
            made.set(key.rstrip("_").replace("_", "-"), "" if value is True else str(value))
    _append(made, children)
    return made


def text_of(made: Element) -> str:
    """The element as HTML."""
    return ElementTree.tostring(made, encoding="unicode", method="html")


def table(
    caption: str, heads: Sequence[Child], rows: Sequence[Sequence[Child]], *, groups: Sequence[str | None] = ()
) -> Element:
    """A table in a region of its own that scrolls; the first cell of a row is its head.

    Args:
        caption: What it shows.
        heads: Of the columns.
        rows: Cells.
        groups: Which group each row is of, for the filter.
    """
    body = [
        element(
            "tr",
            *(
                element("th" if not place else "td", cell, scope=None if place else "row")
                for place, cell in enumerate(row)
            ),
            data_group=groups[number] if groups else None,
        )
        for number, row in enumerate(rows)
    ]
    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", head, scope="col") for head in heads))),
        element("tbody", *body),
    )
    return element("div", made, class_="scroll", role="region", aria_label=caption, tabindex="0")


def section(key: str, title: str, *children: Child) -> Element:
    """A section of the page, with a head of its own."""
    return element(
        "section", element("h2", title, id=f"{key}-title"), *children, id=key, aria_labelledby=f"{key}-title"
    )


def note(*children: Child) -> Element:
    """Small print."""
    return element("p", *children, class_="note")


def code(command: str) -> Element:
    """A command."""
    return element("code", command)


def _append(made: Element, children: Iterable[Child]) -> None:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            made.append(child)
        elif isinstance(child, str):
            if len(made):
                made[-1].tail = (made[-1].tail or "") + child
            else:
                made.text = (made.text or "") + child
        else:
            _append(made, child)
