"""The notebooks run, and what is committed of them reads well on the web.

Each is executed in a reduced setting, in an empty folder, by a kernel that finds the project's
modules on its path. Images and numbers in the repository are those of the full setting.
"""

import ast
import contextlib
import functools
import json
import os
import re
import shlex
from pathlib import Path

import pytest

from experiment.build import build
from experiment.configurations import (
    configuration_names,
    known_configurations,
    load_configuration,
)

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUN_TIME = re.compile(r"Run time: (\d+) seconds\.\n?")

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@functools.cache
def configurations():
    return {name for name, _ in known_configurations()} | set(configuration_names())


def read(path):
    import nbformat  # takes a second, which only those who run these tests should wait

    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def text_of(path):
    cells = read(path).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@notebooks
# Raised by the loop in which the client waits for its kernel, not by this project.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*")
def test_notebook_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    settings = {
        "SCORE_SDE_NOTEBOOKS": "reduced",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than running
        "TMPDIR": str(tmp_path),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    profile = tmp_path / "ipython/profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup/fast.py").write_text("__import__('xla_flags').trace_fast()\n")
    # Otherwise each figure is drawn twice, first for the margins to cut off.
    whole = "c.InlineBackend.print_figure_kwargs = {'bbox_inches': None}\n"
    (profile / "ipython_kernel_config.py").write_text(whole)
    folder = tmp_path / "empty"
    folder.mkdir()
    notebook = read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()  # raises where a cell does
    assert RUN_TIME.fullmatch(printed(code_cells(notebook)[-1]))


@notebooks
def test_committed_outputs_are_whole_and_small(path):
    assert os.path.getsize(path) < 1_000_000
    import nbformat

    notebook = read(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    complaints = [
        output
        for output in outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert not complaints
    # A folder of the machine that executed it would help nobody.
    assert not re.search(r"/(work|home|root|tmp)/", json.dumps([cell.outputs for cell in cells]))


@notebooks
def test_first_cell_is_short_and_states_the_needs_and_last_the_run_time(path):
    first, *_, last = code_cells(read(path))
    assert "import scoresde as ss" in first.source
    assert len(first.source.splitlines()) <= 15
    assert re.search(r"\d x .+ \((cpu|gpu|tpu)\)\n.*minutes.*memory", printed(first))
    (seconds,) = RUN_TIME.fullmatch(printed(last)).groups()
    assert int(seconds) < 300


@notebooks
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)#\s]+)", text_of(path))
    relative = [target for target in targets if not target.startswith("https://")]
    missing = [target for target in relative if not (path.parent / target).exists()]
    assert not missing


@notebooks
def test_files_and_configurations_in_the_text_exist(path):
    text = text_of(path)
    files = re.findall(r"`((?:\w+/)*\w+\.(?:py|md|ipynb))(?::\w+)?`", text)
    places = (ROOT, ROOT / "configs")
    assert not [file for file in files if not any((place / file).exists() for place in places)]
    named = re.findall(r"configs/\w+\.py(?::\w+\b(?!\*))?", text)
    assert not set(named) - configurations() - {"configs/default.py"}


def experiments_of(path):
    """The configurations and overrides of the commands in the text, each once."""
    blocks = re.findall(r"```sh\n(.*?)```", text_of(path), re.DOTALL)
    for command in "".join(blocks).splitlines():
        python, main, *arguments = shlex.split(command)
        assert (python, main) == ("python", "main.py")
        yield tuple(argument for argument in arguments if argument.startswith("--config"))


@pytest.mark.slow
@notebooks
def test_commands_in_the_text_describe_experiments(path):
    for file, *fields in dict.fromkeys(experiments_of(path)):
        config = load_configuration(file.removeprefix("--config="))
        given = dict(field.removeprefix("--config.").split("=", 1) for field in fields)
        for name, value in given.items():
            with contextlib.suppress(ValueError, SyntaxError):  # a string without quotes
                value = ast.literal_eval(value)
            config.update_from_flattened_dict({name: value})
        build(config, overrides=given)
