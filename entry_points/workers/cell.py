"""`python -m entry_points.workers.cell REQUEST`: measures one cell of a benchmark, as `benchmark` starts it.

Prints what was measured, or why it was not, as one JSON line.
"""

import json
import sys

from fmnist.benchmark.cell import Cell, Method, measure
from fmnist.errors import FmnistError

if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    method = Method(**request["method"] | {"levels": tuple(request["method"]["levels"])})
    try:
        result = measure(Cell(**request["cell"]), method, request["started"])
    except FmnistError as reason:
        result = {"skipped": str(reason)}
    print(json.dumps(result), flush=True)
