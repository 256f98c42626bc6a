"""The shape of the code: who may import whom, and names reserved to one module.

The root files and packages stand on floors, listed from the ground up. A file imports only from
floors below its own, or from its own package; nothing is circular.
"""

import ast
import functools
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"errors"},
    {"models", "files", "numerics"},
    {"sde_lib", "training", "published", "data"},
    {"denoising", "time_grids", "metrics"},
    {"sampling", "probability_flow", "guidance", "objectives"},
    {"solvers", "likelihood", "bounds", "losses"},
    {"experiment"},
    {"jobs"},
    {"evaluation", "scoresde"},
    {"run_lib"},
    {"main"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
TESTS = {path.stem for path in (ROOT / "tests").rglob("*.py")} - FLOOR.keys() | {"tests"}
OUTSIDE = {"configs", "benchmarks", "notebooks", "results"}  # on no floor: nothing stands on them
LINES, FUNCTION_LINES = 450, 60

# What only some packages or modules may import or say.
PACKAGES = {
    "flax": {
        *("models", "training", "experiment.build", "experiment.build_model"),
        "metrics.inception",
    },
    "ml_collections": {"main", "experiment", "configs"},
    "tensorflow": {"data"},
    "diffrax": {"numerics"},
    "orbax": {"training"},
    "optax": {"training"},
    "tokenizers": {"published.clip_tokenizer"},
    "huggingface_hub": {"files.hub"},
    "matplotlib": {"files.plots", "files.figures"},
    "ott": {"numerics"},
}
_SHARDING = {"training.parallel", "training.sharding"}
WORDS = {
    "ConfigDict": {"main", "experiment", "configs"},
    "Mesh": _SHARDING,
    "NamedSharding": _SHARDING,
    "PartitionSpec": _SHARDING,
    "make_mesh": _SHARDING,
    "devices": _SHARDING,
}


@functools.cache
def sources() -> tuple[tuple[Path, str], ...]:
    """Every file of ours outside tests, relative to the repository, and its text."""
    paths = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]
    ours = FLOOR.keys() | OUTSIDE
    kept = [path for path in paths if path.parts[0] in ours or len(path.parts) == 1]
    return tuple((path, (ROOT / path).read_text()) for path in kept)


tree_of = functools.cache(ast.parse)  # several tests walk through the same files


def owner(path: Path) -> str:
    """The name on the floor plan: the folder, or the file without its ending."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def is_one_of(module: str, names: set[str]) -> bool:
    """Whether a module is one of `names`, or lies in one of these packages."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


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
    here, this = owner(path), module_of(path)
    for line, module in imports(tree_of(text)):
        there = module.split(".")[0]
        where = f"{path}:{line}: {here} imports {module}"
        if module.startswith("."):
            yield f"{where}: name the module in full"
        elif here == "configs":
            if there in FLOOR.keys() | OUTSIDE | TESTS and there != here:
                yield f"{where}: configurations import only configurations"
        elif here in FLOOR and there in OUTSIDE | TESTS:
            yield f"{where}: only tests and benchmarks may"
        elif there in PACKAGES and not is_one_of(this, PACKAGES[there] | OUTSIDE):
            yield f"{where}: only {', '.join(sorted(PACKAGES[there]))} may"
        elif there in FLOOR and here in FLOOR and here != there and FLOOR[there] >= FLOOR[here]:
            yield f"{where}: floor {FLOOR[there] + 1} is not below floor {FLOOR[here] + 1}"


def wrong_words(path: Path, text: str) -> Iterator[str]:
    this = module_of(path)
    for node in ast.walk(tree_of(text)):
        name = {
            ast.Attribute: lambda node: node.attr,
            ast.Name: lambda node: node.id,
            ast.alias: lambda node: node.name,
        }.get(type(node), lambda _: None)(node)
        belongs = WORDS.get(name)
        if name == "devices" and isinstance(node, ast.Attribute):
            # `parallel.devices` is the mesh's own count; `jax.devices` asks the machine.
            belongs = belongs if ast.unparse(node.value) == "jax" else None
        if belongs and not is_one_of(this, belongs | OUTSIDE):
            yield f"{path}:{node.lineno}: {name} belongs to {', '.join(sorted(belongs))}"
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{path}:{node.lineno}: except without a type"
        asks = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
        if asks and re.match(r"isinstance\((\w+\.)*sde,", ast.unparse(node)):
            yield f"{path}:{node.lineno}: {ast.unparse(node)}: ask the process, not its type"


# Who may read a configuration by the names of its fields; all others use typed options.
# `main` completes one with flags before it is resolved.
READS_FIELDS = {"main", "experiment", "jobs.workdir", "evaluation.protocol"}
# The config.json of another project's checkpoints.
READS_FIELDS |= {"published.diffusers"}


def wrong_reads(path: Path, text: str) -> Iterator[str]:
    """Yield reads such as config["sde"], experiment.config[name] or config.items()."""
    if is_one_of(module_of(path), READS_FIELDS | OUTSIDE):
        return
    for node in ast.walk(tree_of(text)):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            position = isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int)
            reads = not position
        else:
            reads = isinstance(node, ast.Attribute) and node.attr in ("get", "items", "values")
        value = getattr(node, "value", None)
        name = getattr(value, "attr", getattr(value, "id", ""))
        if reads and name in ("config", "resolved"):
            yield f"{path}:{node.lineno}: {ast.unparse(node)}: give it a typed option"


@pytest.mark.slow
def test_configurations_are_read_where_experiments_are_built():
    wrong = [line for path, text in sources() for line in wrong_reads(path, text)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('steps = config["training"]["steps"]', True),
        ('steps = self.experiment.config["training"]', True),
        ('steps = config[f"{name}"]', True),
        ("steps = experiment.config[name]", True),
        ('steps = config.get("training")', True),
        ("sections = self._experiment.config.items()", True),
        ("steps = config[0]", False),
        ('steps = other["training"]', False),
        ('config["a"] = 1', False),
    ],
)
def test_read_of_a_configuration_is_found(text, found):
    assert bool(list(wrong_reads(Path("jobs/train.py"), text))) == found
    assert not list(wrong_reads(Path("jobs/workdir.py"), text))
    assert not list(wrong_reads(Path("experiment/build.py"), text))


def test_the_house_does_not_grow():
    """More files at the root, packages or floors need a reason."""
    roots = [path for path, _ in sources() if len(path.parts) == 1]
    assert (len(roots), len(FLOOR.keys() | {"configs"}), len(FLOORS)) == (11, 26, 11)


def test_the_figure_shows_the_floors():
    texts = ElementTree.parse(ROOT / "docs/assets/floors.svg").iterfind("{*}text")
    drawn, floor = [], None
    for text in texts:
        if (text.text or "").isdigit():
            drawn.append(floor := set())
        elif "text-anchor" in text.attrib:
            folder = (ROOT / text.text).is_dir()
            assert text.text.endswith("/") == folder
            floor.add(text.text.removesuffix("/"))
    assert drawn[::-1] == FLOORS


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
    modules = {module_of(path): text for path, text in sources()}
    graph = {
        name: {module for _, module in imports(tree_of(text)) if module in modules} - {name}
        for name, text in modules.items()
    }
    # A CycleError names the files on the way.
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_script_hides_a_module_of_python():
    """The folder of a script comes first where jax imports Python's modules, newer ones too."""
    reserved = {*sys.stdlib_module_names, "annotationlib", "compression"}
    for folder in (ROOT, ROOT / "benchmarks", ROOT / "tests"):
        assert not reserved & {path.stem for path in folder.iterdir()}, folder


def test_files_are_short():
    long = [
        f"{path}:{count}: over {LINES} lines"
        for path, text in sources()
        if (count := len(text.splitlines())) > LINES
    ]
    assert not long, "\n" + "\n".join(long)


def long_functions(path: Path, text: str) -> Iterator[str]:
    for node in ast.walk(tree_of(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            docstring = ast.get_docstring(node) and first.end_lineno - first.lineno + 1
            count = node.end_lineno - node.lineno + 1 - (docstring or 0)
            if count > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {count} lines, over {FUNCTION_LINES}"


def test_functions_are_short():
    """Without docstrings. Configurations are lists of fields, and scripts run from top to end."""
    ours = [(path, text) for path, text in sources() if owner(path) in FLOOR]
    long = [line for path, text in ours for line in long_functions(path, text)]
    assert not long, "\n" + "\n".join(long)


def test_long_function_is_found():
    docstring, lines = '    """One.\n\n    Two.\n    """\n', "    x = 1\n" * 59
    assert not list(long_functions(Path("a.py"), f"def f():\n{docstring}{lines}"))
    (found,) = long_functions(Path("a.py"), f"def f():\n{docstring}{lines}    x = 1\n")
    assert found == "a.py:1: f has 61 lines, over 60"


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("numerics/ode.py", "\nimport sde_lib", r"ode.py:2: .* floor 3 is not below floor 2"),
        ("objectives/times.py", "from sampling import sample", "floor 5 is not below floor 5"),
        ("sde_lib.py", "def f():\n    import run_lib", "sde_lib.py:2: sde_lib imports run_lib"),
        ("models/dit.py", "from numerics.arrays import digest", "floor 2 is not below floor 2"),
        ("models/dit.py", "from .adm import ADM", "name the module in full"),
        ("run_lib.py", "from configs import default", "only tests and benchmarks may"),
        ("losses.py", "from analytic import gaussian", "only tests and benchmarks may"),
        ("configs/a.py", "import sde_lib", "configurations import only configurations"),
        (
            "sampling.py",
            "from flax import linen",
            "only experiment.build, exp",
        ),
        ("experiment/tasks.py", "from flax import linen", "only experiment.build, "),
        ("metrics/frechet.py", "import tensorflow as tf", "only data may"),
    ],
)
def test_wrong_import_is_found(path, text, problem):
    (found, *_) = wrong_imports(Path(path), text)
    assert re.search(problem, found)


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("training/step.py", "\njax.devices()", "step.py:2: devices belongs to training.parallel"),
        ("losses.py", "from jax.sharding import Mesh", "losses.py:1: Mesh belongs to training.pa"),
        ("losses.py", "x: ConfigDict = 1", "losses.py:1: ConfigDict belongs to configs"),
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
        ("models/ncsnpp.py", "from models.blocks.layers import upsample"),
        ("data/readers.py", "from data.preparation import DIGITS"),
        ("configs/vp.py", "from configs import default"),
        ("solvers/heun.py", "from sampling import Step"),
        ("evaluation/evaluate.py", "from experiment.build import build"),
        ("experiment/experiment.py", "parallel.devices"),
    ],
)
def test_right_ones_pass(path, text):
    assert [*wrong_imports(Path(path), text), *wrong_words(Path(path), text)] == []
