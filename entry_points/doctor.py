"""`./run doctor`, `mlflow run . -e doctor`: is all there that a training needs, and if not, what is to be typed?

It is what a person turns to when nothing else starts: here the standard library must do.
"""

import argparse
import json
import os
import sys

from fmnist.doctor import report
from fmnist.doctor.examination import examine
from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.settings import Doctor


def main() -> int:
    parser = argparse.ArgumentParser("doctor", description=Doctor.__doc__)
    parser.add_argument(
        "-P", dest="pairs", action="append", default=[], metavar="NAME=VALUE", help="as mlflow run"
    )
    parser.add_argument("--fix", metavar="TEXT", default="", help="mend what can safely be; true or false")
    typed = parser.parse_args()
    pairs = dict(text.partition("=")[::2] for text in typed.pairs)
    try:
        settings = parse(Doctor, {"fix": typed.fix} | pairs)
    except FmnistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checks = examine(fix=settings.fix)
    print(report.text(checks), file=sys.stderr)
    if "MLFLOW_RUN_ID" in os.environ and ("store", report.WRONG) not in {
        (each.name, each.state) for each in checks
    }:
        from fmnist.tracking import runs

        runs.describe_launched(settings, "doctor", f"```\n{report.text(checks)}\n```")
    if not sys.stdout.isatty():
        print(json.dumps(report.as_result(checks)), flush=True)
    return 0 if report.is_healthy(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
