"""What a user names as images."""

import re

from fmnist.errors import FmnistError


def parse_images(text: str) -> tuple[str | range, ...]:
    """What `photo.jpg,folder/,test:0,1,2` names: paths, and numbers of test images.

    Raises:
        FmnistError: If there is nothing between two commas, or no number after `test:`.
    """
    found: list[str | range] = []
    for piece in (piece.strip() for piece in text.split(",")):
        follows = bool(found) and isinstance(found[-1], range)
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", piece.removeprefix("test:"))
        if numbers and (piece.startswith("test:") or follows):
            found.append(range(int(numbers[1]), int(numbers[2] or numbers[1]) + 1))
            if not found[-1]:
                raise FmnistError(f"images: expected the smaller number first, received {piece!r}")
        elif piece and not piece.startswith("test:"):
            found.append(piece)
        else:
            raise FmnistError(
                f"images: expected files, folders, or test: and numbers, joined by commas; received {text!r}. "
                "Type for example -P images=photo.jpg,folder/,test:0,1,2"
            )
    return tuple(found)
