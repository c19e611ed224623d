"""`mlflow run . -e report`: one page of what the runs of a store show, in a file that needs nothing else."""

from pathlib import Path
from typing import Any

from fmnist import cache, cli, data, models  # noqa: F401  # models fills its registry
from fmnist.settings import Report


def report(settings: Report) -> dict[str, Any]:
    target = Path(settings.to).expanduser()
    from fmnist import machine
    from fmnist.report import page
    from fmnist.tracking import gather

    gathered = gather.gather(settings.experiment, settings.runs)
    digests = {each.digest for each in gathered.trainings}
    known = {digest: splits.test.images for digest in digests if (splits := data.prepared(digest))}
    cache.write(target, page.page(gathered, known, f"Made by fmnist at commit {machine.commit()[:12]}."))
    return {
        "report": str(target),
        "num_runs": sum(
            map(len, (gathered.trainings, gathered.benchmarks, gathered.searches, gathered.speedruns))
        ),
        "num_models": len({each.model for each in gathered.trainings}),
    }


if __name__ == "__main__":
    cli.main(Report, report)
