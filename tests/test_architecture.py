"""The shape of the code: who may import whom, and words that belong to one file.

Floors are listed from the ground up; a file imports only from floors below its own. Files of one
room (a folder, or the data files) may import each other, without cycles.
"""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ("input_pipeline", "data_readers", "data_preparation")
FLOORS = [
    {
        "arrays",
        "divergence",
        "pytrees",
        "models",
        *DATA,
        "downloads",
        "metrics",
        "parallel",
        "reporting",
        "ode",
        "sde_integration",
    },
    {"sde_lib", "linear_operators", "pictures", "training", "checkpoints", "workdir", "published"},
    {"denoising", "time_grids"},
    {"flow", "classification"},
    {"sampling", "losses", "likelihood", "discrete_bound", "controllable_generation"},
    {"solvers", "continuous_bound", "conditions"},
    {"experiment"},
    {"config_reader"},
    {"sampler_builder"},
    {"builders", "resumable"},
    {"plan", "interchange", "runs", "reference", "training_run", "task_run"},
    {"likelihood_report", "calibration"},
    {"sample_report", "extractors"},
    {"evaluation", "comparison"},
    {"run_lib"},
    {"main"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
ROOMS = (
    {"ode", "pytrees", "sde_integration"},
    {"models"},
    {"metrics"},
    {"published"},
    {"solvers"},
    set(DATA),
)
TESTS = {path.stem for path in Path(__file__).parent.glob("*.py")} | {"tests"}
OUTSIDE = {"configs", "benchmarks", "notebooks"}  # on no floor: nothing stands on them
LINES = 450

# What only some files may import or say.
PACKAGES = {
    "flax": {"models", "training", "builders"},
    "ml_collections": {"main", "run_lib", "runs", "builders", "config_reader", "configs"},
    "tensorflow": set(DATA),
    "diffrax": {"ode", "sde_integration"},
    "orbax": {"checkpoints"},
    "optax": {"training"},
}
WORDS = {
    "ConfigDict": {"main", "run_lib", "runs", "builders", "config_reader", "configs"},
    "Mesh": {"parallel"},
    "NamedSharding": {"parallel"},
    "PartitionSpec": {"parallel"},
    "make_mesh": {"parallel"},
    "devices": {"parallel"},
}


def sources() -> Iterator[tuple[Path, str]]:
    """Every file of ours outside tests, relative to the repository, and its text."""
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]):
        relative = path.relative_to(ROOT)
        if not relative.parts[0].startswith(".") and relative.parts[0] != "tests":
            yield relative, path.read_text()


def owner(path: Path) -> str:
    """The name on the floor plan: the folder, or the file without its ending."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def wrong_imports(path: Path, text: str) -> Iterator[str]:
    here = owner(path)
    for line, module in imports(ast.parse(text)):
        there = module.split(".")[0]
        where = f"{path}:{line}: {here} imports {module}"
        if module.startswith("."):
            yield f"{where}: name the module in full"
        elif here == "configs":
            if there in FLOOR.keys() | OUTSIDE | TESTS and there != here:
                yield f"{where}: configurations import only configurations"
        elif here in FLOOR and there in OUTSIDE | TESTS:
            yield f"{where}: only tests and benchmarks may"
        elif there in PACKAGES and here not in PACKAGES[there] | OUTSIDE:
            yield f"{where}: only {', '.join(sorted(PACKAGES[there]))} may"
        elif there in FLOOR and here in FLOOR:
            roommates = any({here, there} <= room for room in ROOMS)
            if not roommates and FLOOR[there] >= FLOOR[here]:
                yield f"{where}: floor {FLOOR[there]} is not below floor {FLOOR[here]}"


def wrong_words(path: Path, text: str) -> Iterator[str]:
    here = owner(path)
    for node in ast.walk(ast.parse(text)):
        name = {
            ast.Attribute: lambda node: node.attr,
            ast.Name: lambda node: node.id,
            ast.alias: lambda node: node.name,
        }.get(type(node), lambda _: None)(node)
        belongs = WORDS.get(name)
        # `layout.devices` is the layout's own count; `jax.devices` asks the machine.
        ours = isinstance(node, ast.Attribute) and ast.unparse(node.value) != "jax"
        if belongs and here not in belongs | OUTSIDE and not (name == "devices" and ours):
            yield f"{path}:{node.lineno}: {name} belongs to {', '.join(sorted(belongs))}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{path}:{node.lineno}: except without a type"
        if isinstance(node, ast.Call) and re.match(r"isinstance\((\w+\.)*sde,", ast.unparse(node)):
            yield f"{path}:{node.lineno}: {ast.unparse(node)}: ask the process, not its type"


def test_every_file_has_a_floor():
    strangers = {owner(path) for path, _ in sources()} - FLOOR.keys() - OUTSIDE
    assert not strangers, f"put {sorted(strangers)} on a floor of {Path(__file__).name}"


def test_imports_go_down():
    wrong = [line for path, text in sources() for line in wrong_imports(path, text)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_words_stay_in_their_files():
    wrong = [line for path, text in sources() for line in wrong_words(path, text)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_file_imports_itself_by_a_detour():
    modules = {".".join(path.with_suffix("").parts): text for path, text in sources()}
    graph = {
        name: {module for _, module in imports(ast.parse(text)) if module in modules} - {name}
        for name, text in modules.items()
    }
    # A CycleError names the files on the way.
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_files_are_short():
    long = [
        f"{path}:{count}: over {LINES} lines"
        for path, text in sources()
        if (count := len(text.splitlines())) > LINES
    ]
    assert not long, "\n" + "\n".join(long)


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("arrays.py", "\nimport sde_lib", r"arrays.py:2: .* floor 1 is not below floor 0"),
        ("losses.py", "from sampling import sample", "floor 4 is not below floor 4"),
        ("sde_lib.py", "def f():\n    import run_lib", "sde_lib.py:2: sde_lib imports run_lib"),
        ("models/layers.py", "from arrays import expand_like", "floor 0 is not below floor 0"),
        ("models/layers.py", "from .resample import upsample", "name the module in full"),
        ("run_lib.py", "from configs import default", "only tests and benchmarks may"),
        ("losses.py", "from analytic import gaussian", "only tests and benchmarks may"),
        ("configs/a.py", "import sde_lib", "configurations import only configurations"),
        ("sampling.py", "from flax import linen", "only builders, models, training may"),
        ("metrics/frechet.py", "import tensorflow as tf", "only data_preparation, data_readers"),
    ],
)
def test_wrong_import_is_found(path, text, problem):
    (found, *_) = wrong_imports(Path(path), text)
    assert re.search(problem, found)


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("training.py", "\njax.devices()", "training.py:2: devices belongs to parallel"),
        ("training.py", "from jax.sharding import Mesh", "training.py:1: Mesh belongs to parallel"),
        ("losses.py", "x: ConfigDict = 1", "losses.py:1: ConfigDict belongs to builders"),
        ("losses.py", "isinstance(self.sde, VPSDE)", "losses.py:1: isinstance.* ask the process"),
        ("losses.py", "try: f()\nexcept: pass", "losses.py:2: except without a type"),
    ],
)
def test_wrong_word_is_found(path, text, problem):
    (found, *_) = wrong_words(Path(path), text)
    assert re.search(problem, found)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("models/ncsnpp.py", "from models.layers import upsample"),
        ("data_readers.py", "from input_pipeline import ImageData"),
        ("configs/vp.py", "from configs import default"),
        ("solvers/heun.py", "from sampling import Step"),
        ("evaluation.py", "from builders import build"),
        ("experiment.py", "layout.devices"),
    ],
)
def test_right_ones_pass(path, text):
    assert [*wrong_imports(Path(path), text), *wrong_words(Path(path), text)] == []
