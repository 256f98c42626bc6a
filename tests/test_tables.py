"""One row per choice: no module lists the rows of a table, and a mode is one row.

That new rows of the other tables work is in test_new_rows.py and test_more_new_rows.py.
"""

import ast
import os
import subprocess
import sys

import pytest
from command_line import CONFIG, ROOT, run
from test_architecture import OUTSIDE, module_of, sources

import probability_flow
from data import readers
from data.couplings import COUPLINGS
from data.dequantization import DEQUANTIZATIONS
from data.generators import POINTS, SERIES
from denoising import CONDITIONINGS
from evaluation.features import FEATURES
from evaluation.metrics import METRICS
from experiment.class_guidance import GUIDANCES
from experiment.kinds import KINDS
from experiment.tasks import TASKS
from jobs.diagnostics import DIAGNOSTICS
from losses import LOSSES
from main import MODES
from models import CLASSIFIERS, NETWORKS
from numerics.ode import ODE_METHODS
from numerics.parameterizations import PARAMETERIZATIONS
from numerics.stochastic import SDE_METHODS
from objectives.times import TIMES
from objectives.uncertainty import TARGETS
from objectives.variational import VARIANCES
from objectives.weights import WEIGHTS
from sde_lib import SDES
from solvers import ADAPTIVE, SOLVERS
from solvers.heun import SCALINGS, VARIABLES
from solvers.predictor_corrector import CORRECTORS, PREDICTORS
from time_grids import TIME_GRIDS
from training.optimizers import OPTIMIZERS
from training.schedules import SCHEDULES

_NEW_MODE = """
import run_lib
run_lib.dummy = lambda experiment, workdir, *, target: print(workdir.path, target, experiment.seed)
"""


@pytest.mark.slow
def test_mode(tmp_path):
    """Flags are made when main.py is read, so the row is written into a copy of it."""
    row = '    "dummy": Mode("dummy", flags=("target",), required=("target",)),\n'
    source = (ROOT / "main.py").read_text()
    assert source.count("MODES = {\n") == 1
    docstring, rest = source.split('"""\n', 1)
    text = f'{docstring}"""\n{_NEW_MODE}{rest}'.replace("MODES = {\n", f"MODES = {{\n{row}")
    (tmp_path / "main.py").write_text(text)

    def call(*arguments):
        return subprocess.run(
            [
                sys.executable,
                tmp_path / "main.py",
                f"--config={CONFIG}",
                "--mode=dummy",
                *arguments,
            ],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    done = call("--workdir=there", "--target=x.npz", "--config.seed=7")
    assert done.stdout == "there x.npz 7\n", done.stderr
    assert "--mode=dummy needs --target=FILE" in call().stderr
    assert "--gif is only valid with --mode=sample, not dummy" in call("--gif").stderr


@pytest.mark.slow
def test_every_mode_is_a_function_of_run_lib():
    import run_lib

    for name, mode in MODES.items():
        assert callable(getattr(run_lib, mode.function)), name
        assert set(mode.required) <= set(mode.flags), name
    unknown = run(f"--config={CONFIG}", "--mode=dummy")
    assert all(name in unknown.stderr for name in MODES)


# table -> its module and its rows' names.
TABLES = {
    "KINDS": ("experiment.kinds", KINDS),
    "POINTS": ("data.generators", POINTS),
    "SERIES": ("data.generators", SERIES),
    "CONDITIONINGS": ("denoising", CONDITIONINGS),
    "READERS": ("data.readers", readers.READERS),
    "COUPLINGS": ("data.couplings", COUPLINGS),
    "MODES": ("main", MODES),
    "METRICS": ("evaluation.metrics", METRICS),
    "DIAGNOSTICS": ("jobs.diagnostics", DIAGNOSTICS),
    "FEATURES": ("evaluation.features", FEATURES),
    "TASKS": ("experiment.tasks", TASKS),
    "GUIDANCES": ("experiment.class_guidance", GUIDANCES),
    "PARAMETERIZATIONS": ("numerics.parameterizations", PARAMETERIZATIONS),
    "TIME_GRIDS": ("time_grids", TIME_GRIDS),
    "SOLVERS": ("solvers", SOLVERS),
    "ADAPTIVE": ("solvers", ADAPTIVE),
    "VARIABLES": ("solvers.heun", VARIABLES),
    "VARIABLES of the ODE": ("probability_flow", probability_flow.VARIABLES),
    "ODE_METHODS": ("numerics.ode", ODE_METHODS),
    "SDE_METHODS": ("numerics.stochastic", SDE_METHODS),
    "SCALINGS": ("solvers.heun", SCALINGS),
    "PREDICTORS": ("solvers.predictor_corrector", PREDICTORS),
    "CORRECTORS": ("solvers.predictor_corrector", CORRECTORS),
    "SDES": ("sde_lib", SDES),
    "NETWORKS": ("models", NETWORKS),
    "CLASSIFIERS": ("models", CLASSIFIERS),
    "LOSSES": ("losses", LOSSES),
    "OPTIMIZERS": ("training.optimizers", OPTIMIZERS),
    "SCHEDULES": ("training.schedules", SCHEDULES),
    "TIMES": ("objectives.times", TIMES),
    "WEIGHTS": ("objectives.weights", WEIGHTS),
    "TARGETS": ("objectives.uncertainty", TARGETS),
    "VARIANCES": ("objectives.variational", VARIANCES),
    "DEQUANTIZATIONS": ("data.dequantization", DEQUANTIZATIONS),
}
TABLES = {table: (module, set(rows)) for table, (module, rows) in TABLES.items()}
OWNERS = {module for module, _ in TABLES.values()}  # tables of different things share names

# Lists that a new row leaves as they are.
NOT_ROWS = {
    "experiment.randomness",  # uses of randomness, of which some are metrics; their order counts
    "published.score_sde",  # networks that another project's files hold
}


def lists_of_rows(module, text):
    """Yield the literals that hold three or more names of one table, away from the table."""
    tree = ast.parse(text)
    # The default of a field is a selection, which a new row leaves as it is.
    defaults = {
        id(node.value)
        for cls in ast.walk(tree)
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if id(node) in defaults:
            continue
        parts = {ast.Tuple: "elts", ast.List: "elts", ast.Set: "elts", ast.Dict: "keys"}
        elements = getattr(node, parts.get(type(node), ""), ())
        names = {e.value for e in elements if isinstance(e, ast.Constant)}
        for table, (owner, rows) in TABLES.items():
            keys_of_another = isinstance(node, ast.Dict) and module in OWNERS
            if module != owner and not keys_of_another and len(found := names & rows) >= 3:
                yield f"{module}:{node.lineno}: repeats {sorted(found)} of {table}"


def test_no_other_module_lists_the_rows_of_a_table():
    wrong = [
        line
        for path, text in sources()
        if path.parts[0] not in OUTSIDE and module_of(path) not in NOT_ROWS
        for line in lists_of_rows(module_of(path), text)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        'x = ("loss", "kid", "frechet")',
        'x = {"vp": 1, "ve": 2, "edm": 3}',
        'def f(x):\n    return x in ["train", "eval", "sample", "other"]',
        'x = {"pixels", "inception", "classifier"}',
    ],
)
def test_a_list_of_rows_is_found(text):
    assert list(lists_of_rows("somewhere", text))


@pytest.mark.parametrize(
    "text",
    [
        'x = ("loss", "kid")',
        'class A:\n    metrics: tuple = ("loss", "kid", "frechet")',
        "x = (1,)",
    ],
)
def test_a_selection_is_no_list_of_rows(text):
    assert not list(lists_of_rows("somewhere", text))
    assert not list(lists_of_rows("evaluation.metrics", 'x = ("loss", "kid", "frechet")'))
