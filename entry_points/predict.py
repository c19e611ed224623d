"""`mlflow run . -e predict`: answer photographs of clothes, or other images, with a model."""

from typing import Any

from fmnist import cli, data, prediction  # noqa: F401  # data fills the registry of datasets
from fmnist.settings import Predict


def predict(settings: Predict) -> dict[str, Any]:
    """Raises `Incomplete`, after its run has ended, where something was skipped."""
    sources = prediction.sources(settings.images)
    from fmnist.tracking import prediction as log
    from fmnist.tracking import runs, versions

    runs.open_store()
    version = versions.find(settings.model_uri)
    names, test = version.class_names, None
    if any(isinstance(source.place, range) for source in sources):
        test = versions.test_split(version, settings.dataset, settings.data_dir)
    tally, pages = prediction.Tally(names), log.Pages(names)
    with runs.run(settings, f"predict {version}"):
        log.log_begin(version)
        served = versions.load(version, len(names))
        with cli.Progress("predict", sum(map(len, sources)), unit="image", keep=True) as progress:
            for answer in prediction.answers(
                sources, served.predict, names, raw=settings.raw, test=test, strangeness=served.strangeness
            ):
                progress.step(prediction.row(answer, names))
                tally.add(answer)
                pages.add(answer)
        pages.log()
        result = log.log_end(version, tally)
    return log.refuse_skipped(result)


if __name__ == "__main__":
    cli.main(Predict, predict)
