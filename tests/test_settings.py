"""Settings, the command line and MLproject say the same."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import fmnist.data
import fmnist.models  # noqa: F401  # fills the registry
from fmnist import cli, options, settings
from fmnist.errors import FmnistError

ROOT = Path(__file__).parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
ENTRY_POINTS = {
    "preprocess": settings.Preprocess,
    "train": settings.Train,
    "benchmark": settings.Benchmark,
    "speedrun": settings.Speedrun,
    "tune": settings.Tune,
    "evaluate": settings.Evaluate,
    "predict": settings.Predict,
    "demo": settings.Demo,
    "promote": settings.Promote,
    "main": settings.Main,
    "export": settings.Export,
    "import": settings.Import,
    "init": settings.Init,
    "reproduce": settings.Reproduce,
    "report": settings.Report,
    "doctor": settings.Doctor,
}


@pytest.mark.parametrize(("name", "record"), ENTRY_POINTS.items())
def test_mlproject_repeats_every_name_and_default(name, record):
    expected = {field.name: options.default_text(field) for field in dataclasses.fields(record)}
    declared = {key: entry["default"] for key, entry in PROJECT[name]["parameters"].items()}
    assert declared == expected
    passed = re.findall(r"--(\w+) \{(\w+)\}", PROJECT[name]["command"])
    assert passed == [(key, key) for key in expected]


def test_mlproject_has_an_entry_point_for_each_settings_record():
    assert set(PROJECT) == set(ENTRY_POINTS)


@pytest.mark.parametrize(("name", "record"), ENTRY_POINTS.items())
def test_help_names_every_parameter_with_its_default(name, record):
    output = CliRunner().invoke(cli._command(record), ["--help"], terminal_width=400).output
    for field in dataclasses.fields(record):
        default = options.default_text(field) or "empty"
        assert re.search(rf"--{field.name} .*\[default: {re.escape(default)}\]", output)


@pytest.mark.parametrize(("name", "record"), ENTRY_POINTS.items())
def test_the_page_of_an_entry_point_lists_every_parameter_with_its_default_and_a_meaning(name, record):
    page = (ROOT / "docs" / f"{name}.md").read_text()
    table = page.split("| parameter | default | meaning |\n| --- | --- | --- |\n")[1].split("\n\n")[0]
    rows = [re.fullmatch(r"\| `(\w+)` \| (?:`(.+?)`|empty) \| (\S.*) \|", row) for row in table.splitlines()]
    listed = [(row[1], row[2] or "") for row in rows]
    assert listed == [(field.name, options.default_text(field)) for field in dataclasses.fields(record)]


def test_an_empty_text_is_the_default():
    assert options.parse(settings.Train, {"epochs": "", "model": ""}) == settings.Train()


def test_auto_leaves_a_value_to_the_recipe():
    assert options.parse(settings.Train, {"epochs": "auto", "learning_rate": "auto"}).epochs is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model", "lenett", "unknown model 'lenett'. Did you mean 'lenet'?"),
        ("dataset", "fashion_mnist", "unknown dataset 'fashion_mnist'. Did you mean 'fashion-mnist'?"),
        ("epochs", "five", "epochs: expected a whole number, or auto; received 'five'"),
        ("epochs", "0", "epochs: expected at least 1, received 0"),
        ("epochs", "1.5", "epochs: expected a whole number, or auto; received '1.5'"),
        ("batch_size", "-1", "batch_size: expected at least 1, received -1"),
        ("learning_rate", "nan", "learning_rate: expected a number above 0, received nan"),
        ("learning_rate", "inf", "learning_rate: expected a number above 0, received inf"),
        ("optimizer", "adamm", "unknown optimizer 'adamm'. Did you mean 'adam'? Choose from: auto, sgd"),
        ("augment", "flip", "unknown augmentation 'flip'."),
        ("augment", "shift+shift", "augment: expected each name once"),
        ("validation", "half", "validation: expected a number of images"),
        ("validation", "0", "validation: expected a number of images of at least 1"),
        ("seed", "-1", "seed: expected at least 0"),
        ("batch_parts", "0", "batch_parts: expected at least 1"),
        ("device", "tpu", "unknown device 'tpu'."),
        ("tensorboard", "maybe", "tensorboard: expected true or false; received 'maybe'"),
        ("registered_model", "a/b", "registered_model: expected a name without / and :"),
        ("registered_model", " ", "registered_model: expected a name without / and :"),
        ("colour", "red", "unknown parameter 'colour'."),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_says_what_was_expected(name, text, message):
    with pytest.raises(FmnistError) as caught:
        options.parse(settings.Train, {name: text})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("nan", "at least 0"), ("inf", "at least 0"), ("5", "less than 1")])
def test_a_margin_is_a_share(text, message):
    with pytest.raises(FmnistError, match=f"margin: expected {message}, received"):
        options.parse(settings.Promote, {"candidate": "models:/m/1", "margin": text})


@pytest.mark.parametrize("record", [settings.Train(data_dir="/data/v1.0", registered_model="m1.0")])
def test_settings_survive_being_written_as_texts(record):
    assert options.parse(type(record), options.texts(record)) == record


@pytest.mark.parametrize("other", [{"backend": "jax"}, {"trainer": "fit"}])
def test_parts_of_a_batch_are_refused_where_nothing_works_on_parts(other):
    with pytest.raises(FmnistError, match=r"batch_parts=2: .*Type -P batch_parts=1"):
        options.parse(settings.Train, {"batch_parts": "2", **other})
