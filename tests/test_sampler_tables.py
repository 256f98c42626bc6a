"""The tables of trained networks in docs/samplers.md and guidance.md are those of the results."""

import sys

from command_line import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import budgets
import controllable
import ddim
import song_table
from trained_samplers import markdown

import scoresde as ss

PAGE, GUIDANCE = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("samplers", "guidance"))
SAMPLES, LEVELS = 500, 100


def test_the_table_of_ddim_is_that_of_its_results():
    columns = [str(steps) for steps in ddim.STEPS]
    table = markdown(ddim.RESULTS, "VP", SAMPLES, "evaluations", ddim.ROWS, columns)
    assert table in PAGE
    assert table.count(" to ") == len(ddim.ROWS) * len(ddim.STEPS)


def test_the_tables_of_all_solvers_are_those_of_their_results():
    for run in budgets.FEATURES:
        table = budgets.table(run)
        assert table in PAGE
        assert table.count(" to ") == len(budgets.CHOICES) * len(budgets.BUDGETS)


def test_the_tables_of_controllable_generation_are_those_of_their_results():
    assert controllable.classes_table() in GUIDANCE
    assert controllable.problems_table() in GUIDANCE
    rows = 1 + 2 * len(controllable.METHODS)
    assert controllable.problems_table().count("±") == rows * len(controllable.OPERATORS)


def test_the_tables_of_predictors_and_correctors_are_those_of_their_results():
    for name in song_table.PREDICTORS:
        table = song_table.table(name, LEVELS, SAMPLES)
        assert table in PAGE
        assert table.count(" to ") == len(list(song_table.cells(name, LEVELS)))


def test_cells_take_the_evaluations_that_their_columns_say():
    for _, column, solver, grid in budgets.cells():
        evaluations = solver.plan(ss.VPSDE(), grid.of(ss.VPSDE())).evaluations + 1
        assert 0 <= int(column) - evaluations <= 1
    found = [line["nfe"] for line in ddim.RESULTS.lines()]
    assert found == [int(line["column"]) for line in ddim.RESULTS.lines()]
    sde = ss.VPSDE()
    assert len(song_table.corrector_levels(1000)) == 1
    for _, column, solver, schedule in song_table.cells("VP", LEVELS):
        evaluations = solver.plan(sde, schedule.of(sde)).evaluations + 1
        expected = {"P": 1, "C": 1, "PC": 2}[column.rstrip("0123456789")]
        levels = int(column.lstrip("PC"))
        assert evaluations == expected * (levels - 1) + 1
