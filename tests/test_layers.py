"""The house keeps its shape: imports point downward, and each outside library has its home."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAYERS = [  # a module may import from rows above its own, not from its own row
    {"errors"},
    {"registry", "classes", "records"},
    {"options", "space", "images", "arguments"},
    {"settings", "recipe"},
    {"cache", "machine", "statistics"},
    {"processes", "markdown", "summary", "bundle"},
    {"photos.files", "photos.network"},
    {"photos.cutting"},
    {"photos.form", "photos.sleeves"},
    {"photos"},
    {"data.download", "data.synthetic", "data.idx"},
    {"data.photographs"},
    {"data.datasets", "data.splits"},
    {"data"},
    {"evaluation.calibration", "evaluation.corruptions", "evaluation.speed", "evaluation.strangeness"},
    {"models", "initial", "device", "evaluation", "plots", "checkpoint"},
    {"prediction"},
    {"evaluation.assessment", "promotion", "reproduction", "demo"},
    {"plots.data", "plots.benchmark"},
    {"plots.training", "plots.evaluation", "plots.answers"},
    {"engine.photo", "engine.result"},
    {"engine.muon"},
    {"engine.randomness", "engine.schedule", "engine.operations"},
    {"engine.changes"},
    {"engine.compiled", "engine.fit"},
    {"engine.tensorflow", "engine.jax", "engine.torch"},
    {"engine.together"},
    {"engine"},
    {"training", "doctor"},
    {"doctor.report"},
    {"doctor.examination", "doctor.probes"},
    {"together"},
    {"seeds"},
    {"speedrun"},
    {"benchmark"},
    {"benchmark.cell"},
    {"benchmark.grid"},
    {"benchmark.ratios"},
    {"benchmark.verdict"},
    {"report"},
    {"report.markup", "report.records"},
    {"report.groups", "report.charts"},
    {"report.claims", "report.models"},
    {"report.images", "report.machines", "report.board"},
    {"report.page"},
    {"tuning"},
    {"tuning.studies", "tuning.workers", "tuning.figures"},
    {"tuning.sampling", "tuning.meeting"},
    {"tuning.trials"},
    {"tuning.candidates"},
    {"tuning.verdict"},
    {"tuning.leader"},
    {"serving.loader", "serving.conversion"},
    {"serving.flavor"},
    {"serving"},
    {"tracking"},
    {"tracking.pages", "tracking.colors"},
    {"tracking.template", "tracking.outbox_stores"},
    {"tracking.bundles", "tracking.standin"},
    {"tracking.exports"},
    {"tracking.kept"},
    {"tracking.outbox"},
    {"tracking.runs", "tracking.cards"},
    {"tracking.models", "tracking.versions"},
    {"tracking.training", "tracking.benchmark"},
    {
        "tracking.search",
        "tracking.evaluation",
        "tracking.promotion",
        "tracking.pipeline",
        "tracking.ui",
        "tracking.speedrun",
    },
    {"tracking.prediction"},
    {"tracking.imports", "tracking.reproduction", "tracking.health"},
    {"tracking.gather"},
    {"cli"},
]
HOMES = {
    "ai_edge_litert": {"serving.loader"},
    "mlflow": {
        *("serving", "serving.flavor", "serving.loader"),
        *("tracking.pages", "tracking.template", "tracking.ui", "tracking.gather"),
        *("tracking.runs", "tracking.models", "tracking.training", "tracking.benchmark", "tracking.search"),
        *("tracking.versions", "tracking.evaluation", "tracking.promotion", "tracking.pipeline"),
        *("tracking.bundles", "tracking.exports", "tracking.imports", "tracking.reproduction", "tracking.health"),
        *("tracking.standin", "tracking.kept", "tracking.outbox", "tracking.outbox_stores"),
        *("tracking.prediction", "tracking.speedrun"),
    },
    "click": {"cli"},
    "tensorflow": {
        *("engine", "engine.tensorflow", "engine.operations", "engine.fit"),
        *("device", "serving.conversion"),
    },
    "jax": {"engine", "engine.jax", "engine.together", "device"},
    "torch": {"engine", "engine.torch", "device"},
    "keras": {
        "engine",
        *(
            f"engine.{name}"
            for name in ("compiled", "tensorflow", "jax", "operations", "changes", "schedule", "muon")
        ),
        "engine.fit",
        "engine.torch",
        "engine.together",
        "engine.randomness",
        "engine.photo",
        "device",
        "models",
        "benchmark.cell",
        "tuning.trials",
        "serving.flavor",
        "serving.conversion",
        "serving.loader",
    },
    "optuna": {
        f"tuning.{name}"
        for name in ("studies", "trials", "leader", "candidates", "verdict", "figures", "sampling")
    },
    "ray": {"tuning.workers"},
    "psycopg": {"tuning.studies"},
    "seaborn": {"plots.benchmark", "plots.evaluation"},
    "psutil": {"machine", "processes", "benchmark.cell"},
    "filelock": {"cache", "checkpoint", "processes"},
    "platformdirs": {"cache"},
    "scipy": {"demo", "statistics", "evaluation.calibration", "evaluation.corruptions"},
    "PIL": {"demo", "evaluation.corruptions", "report.images", "photos.files", "tracking.exports"},
    "cv2": {"photos", "photos.network", "photos.cutting", "photos.form", "photos.sleeves"},
    "pillow_heif": {"photos.files"},
    "pynvml": {"machine"},
    "gradio": {"demo"},
}
MODULES = {
    ".".join(path.relative_to(ROOT / "fmnist").with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "fmnist").rglob("*.py")
    if path != ROOT / "fmnist" / "__init__.py"
}


def imports(path: Path) -> set[str]:
    """Full names of all that a module imports anywhere, but for types alone."""
    tree = ast.parse(path.read_text())
    only_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in only_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def level(module: str) -> int:
    return next(number for number, row in enumerate(LAYERS) if module in row)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_layers_below_its_own(module):
    for name in imports(MODULES[module]):
        if name.startswith("fmnist."):
            parts = name.removeprefix("fmnist.").split(".")
            target = max((".".join(parts[:n]) for n in (1, 2) if ".".join(parts[:n]) in MODULES), key=len)
            assert level(target) < level(module), f"{module} imports {target}"


@pytest.mark.parametrize(("library", "homes"), HOMES.items())
def test_an_outside_library_is_imported_at_home_only(library, homes):
    users = {module for module, path in MODULES.items() if any(n.split(".")[0] == library for n in imports(path))}
    assert users <= homes


def test_the_bottom_needs_the_standard_library_alone():
    code = "import fmnist.settings, sys; print({m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"'(\w+)'", done.stdout)) <= {"fmnist", "__main__"}


def test_conda_and_pyproject_bound_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pip,) = [
        entry["pip"]
        for entry in yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
        if isinstance(entry, dict)
    ]
    tensorflow, *others = project["optional-dependencies"]["gpu"]
    assert pip == [
        *project["dependencies"],
        f"{tensorflow}; sys_platform == 'linux'",
        f"{tensorflow.replace('[and-cuda]', '')}; sys_platform != 'linux'",
        *others,
    ]


def test_every_bounded_dependency_is_pinned_within_its_bounds():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for text in (*project["dependencies"], extras["cpu"][0], *extras["dev"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def test_no_tracked_file_names_an_index_host():
    hosts = re.compile("pypi" + r"\.org|python" + "hosted|" + r"conda\." + "anaconda")
    for path in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        assert not hosts.search((ROOT / path).read_text(errors="ignore")), path
