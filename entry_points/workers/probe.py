"""`python -m entry_points.workers.probe NAME [fix]`: looks at one thing, as `doctor` starts it; prints JSON."""

import dataclasses
import json
import sys

from fmnist.doctor.report import Check


def probe(name: str, *, fix: bool) -> list[Check]:
    if name == "store":
        from fmnist.tracking import health

        return health.examine(fix=fix)
    from fmnist.doctor import probes

    if name == "caches":
        return probes.caches(fix=fix)
    if name == "data":
        return probes.data()
    if name == "libraries":
        return probes.libraries()
    return probes.backend(name)


if __name__ == "__main__":
    found = probe(sys.argv[1], fix="fix" in sys.argv[2:])
    print(json.dumps([dataclasses.asdict(each) for each in found]), flush=True)
