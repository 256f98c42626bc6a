"""The notebooks run, and what is committed of them reads well on the web.

Each is executed in a reduced setting, in an empty folder, by a kernel that finds the project's
modules on its path. Pictures and numbers in the repository are those of the full setting.
"""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BADGE = re.compile(
    r"\[!\[Open in Colab\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
    r"\(https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/([^)]*)\)"
)
RUN_TIME = re.compile(r"Run time: (\d+) seconds\.\n?")

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def text_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def names_of_repository(path):
    """Where the badge and the first code cell say that the project is."""
    notebook = nbformat.read(path, as_version=4)
    cloned = re.findall(r"https://github\.com/([\w.-]+/[\w.-]+)", code_cells(notebook)[0].source)
    return {repository for repository, _ in BADGE.findall(text_of(notebook))} | set(cloned)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@notebooks
# Of the loop in which the client waits for its kernel, and not of ours.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*")
def test_notebook_runs(path, tmp_path, monkeypatch):
    settings = {
        "SCORE_SDE_NOTEBOOKS": "reduced",
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than running
        "TMPDIR": str(tmp_path),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "empty"
    folder.mkdir()
    notebook = nbformat.read(path, as_version=4)
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
    notebook = nbformat.read(path, as_version=4)
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
def test_first_cell_tells_what_is_needed_and_last_what_it_took(path):
    first, *_, last = code_cells(nbformat.read(path, as_version=4))
    assert re.search(r"\d x .+ \((cpu|gpu|tpu)\)\n.*minutes.*memory", printed(first))
    (seconds,) = RUN_TIME.fullmatch(printed(last)).groups()
    assert int(seconds) < 300


@notebooks
def test_badge_and_links_lead_somewhere(path):
    text = text_of(nbformat.read(path, as_version=4))
    ((_, opened),) = BADGE.findall(text)
    assert opened == f"notebooks/{path.name}"
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    beside = [target for target in targets if not target.startswith("https://")]
    missing = [target for target in beside if not (path.parent / target).exists()]
    assert not missing


def test_all_name_the_same_repository():
    named = set().union(*map(names_of_repository, NOTEBOOKS))
    stated = re.search(
        r"repository-code:.*github\.com/([\w./-]+)", (ROOT / "CITATION.cff").read_text()
    )
    assert len(named) == 1
    assert not stated or named == {stated[1]}
