"""The tables of trained networks in the documentation are those of the benchmarks' results."""

import runpy
import sys

from command_line import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import budgets
import controllable
import ddim
import dequantization
import energies
import learned_schedule
import likelihood_steps
import published_steps
import quality
import song_table
import text
from trained_samplers import markdown

import scoresde as ss

PAGE, GUIDANCE, LIKELIHOODS = (
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("samplers_compared", "guidance", "results")
)
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
        assert {"5", "10", "20"} <= {*budgets.columns_of(run)}
        assert table.count(" to ") == len(budgets.CHOICES) * len(budgets.columns_of(run))
        assert f"{budgets.SAMPLES[run]:,} training images have {budgets.floor(run):.3f}" in PAGE


def test_the_tables_of_controllable_generation_are_those_of_their_results():
    for run in ("vp_mnist", "vp_cifar10_small"):
        classes = controllable.classes_table(run)
        assert classes in GUIDANCE
        assert classes.count("±") == len(controllable.SCALES) + 1
    problems = controllable.problems_table()
    assert problems in GUIDANCE
    rows = [len([*controllable.rows_of(each)]) for each in controllable.PROBLEMS.values()]
    assert problems.count("±") == len(rows) + sum(rows)


def test_the_table_of_likelihood_against_steps_is_that_of_its_results():
    table = likelihood_steps.table()
    assert table in LIKELIHOODS
    assert table.count("\n") == 1 + len(likelihood_steps.MEASURES)
    assert f"all test images is {likelihood_steps.of_all_images()}, estimated" in LIKELIHOODS
    assert likelihood_steps.change(likelihood_steps.ODE, likelihood_steps.BOUND) in LIKELIHOODS


def test_the_tables_of_predictors_and_correctors_are_those_of_their_results():
    for name in song_table.PREDICTORS:
        table = song_table.table(name, LEVELS, SAMPLES)
        assert table in PAGE
        assert table.count(" to ") == len(list(song_table.cells(name, LEVELS)))


def test_cells_take_the_evaluations_that_their_columns_say():
    sde = ss.VPSDE()
    for row, column, solver, schedule in budgets.cells():
        evaluations = solver.plan(sde, schedule.of(sde)).evaluations + 1
        odd = budgets.CHOICES[row].per_step == 2 and int(column) % 2 == 0
        assert evaluations == int(column) - odd
    found = [line["nfe"] for line in ddim.RESULTS.lines()]
    assert found == [int(line["column"]) for line in ddim.RESULTS.lines()]
    assert len(song_table.corrector_levels(1000)) == 1
    for _, column, solver, schedule in song_table.cells("VP", LEVELS):
        evaluations = solver.plan(sde, schedule.of(sde)).evaluations + 1
        expected = {"P": 1, "C": 1, "PC": 2}[column.rstrip("0123456789")]
        levels = int(column.lstrip("PC"))
        assert evaluations == expected * (levels - 1) + 1


def test_the_tables_of_energies_are_those_of_their_results():
    page = (ROOT / "docs" / "energies.md").read_text()
    table, chains = energies.table(), energies.chains_table()
    assert table in page
    assert table.count("±") == 7
    assert chains in page
    assert chains.count("%") == len(energies.STEP_SIZES)


def test_the_table_of_published_configurations_has_them_all():
    assert published_steps.table() in (ROOT / "docs" / "results.md").read_text()
    measured = [line["config"] for line in published_steps.RESULTS.lines()]
    assert sorted(measured) == sorted(published_steps.published_configurations())


def test_the_tables_of_objectives_and_of_few_steps_are_those_of_their_results():
    pages = "".join(
        (ROOT / "docs" / f"{name}.md").read_text()
        for name in ("objectives", "training", "samplers", "guidance")
    )
    objectives = runpy.run_path(str(ROOT / "benchmarks" / "objectives.py"))  # a package's name
    lines = objectives["RESULTS"].lines(steps=600)
    blocks = "\n".join(quality.tables(600)).split("\n\n")
    assert len(blocks) == 3
    for table in (objectives["table"](lines), *blocks):
        assert table in pages


def test_the_tables_of_optimal_variances_are_those_of_their_results():
    analytic = runpy.run_path(str(ROOT / "benchmarks" / "analytic.py"))  # a module's name
    pages = "".join(
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("samplers", "evaluation")
    )
    for quantity, head in analytic["QUANTITIES"].items():
        table = analytic["table"](quantity, "digits")
        assert table in pages
        assert table.startswith(f"| {head} | 5 | 10 | 20 |")


def test_the_table_of_learned_schedules_is_that_of_its_results():
    table = learned_schedule.table("vdm_digits")
    assert table in (ROOT / "docs" / "objectives.md").read_text()
    assert len(table.splitlines()) == 2 + len(learned_schedule.SCHEDULES)


def test_the_table_of_dequantizations_is_that_of_its_results():
    assert dequantization.table() in (ROOT / "docs" / "evaluation.md").read_text()


def test_the_table_of_texts_is_that_of_its_results():
    table = text.table("vp_digits")
    assert table in (ROOT / "docs" / "text.md").read_text()
    assert table.count("±") == len(text.SETTINGS)
