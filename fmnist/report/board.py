"""The section about records: what was run for a target accuracy, whether it was reached, and how fast."""

from collections.abc import Sequence

from fmnist.records import TARGETS
from fmnist.report.markup import Child, Element, code, element, note, section, table
from fmnist.report.records import Claimed
from fmnist.speedrun import BOARD, row

COMMAND = "mlflow run . -e speedrun -P target=94"


def board(speedruns: Sequence[Claimed]) -> Element:
    """A line for each speedrun: by target and kind of device, those that reached it first, the fastest first."""

    def place(each: Claimed) -> tuple[object, ...]:
        result = each.result
        kind = result["device"].partition(":")[0]
        return TARGETS.index(result["target"]), kind, result["reached"] is False, result["seconds"]["mean"]

    rows: list[tuple[Child, ...]] = []
    for each in sorted(speedruns, key=place):
        *figures, recipe, device, versions, commit, date, command = row(each.result)
        named = f"{each.result['model']}, {each.result['by_seed'][0]['num_parameters']:,} parameters"
        about = (_folded(named, recipe), device, _folded("versions", versions))
        rows.append((*figures, *about, code(commit), date, code(command)))
    if not rows:
        found = [
            element("p", "No speedrun is in this report. To see how fast this machine is: ", code(COMMAND), ".")
        ]
    else:
        found = [
            table("Targets and the recorded recipes that were run for them", BOARD, rows),
            note(
                "A target is reached where the mean test accuracy of all seeds is as high. Seconds are the mean "
                "of the same seeds, from the first read of the data to the last update, without compilation."
            ),
        ]
    return section("records", "How fast to a target?", *found)


def _folded(summary: str, text: str) -> Element:
    return element("details", element("summary", summary), text)
