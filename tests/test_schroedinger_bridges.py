"""Schroedinger bridges between Gaussians by every method, against their closed form; the tables."""

import sys

import numpy as np
import pytest
from command_line import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import bridges

from sde_lib import LinearPathSDE

ROUNDS, SEED = 6, 0


@pytest.mark.parametrize("g", [0.3, 1.0, 2.0])
def test_the_closed_form_is_the_markov_process_of_bridges_whose_ends_have_its_kernel(g):
    """Its pairs have the density f(x0) h(x1) exp(-|x0 - x1|^2 / 2 g^2), and x_t parts x0 from x1.

    Only the Schroedinger bridge has both (Leonard 2014, arXiv:1308.0215).
    """
    problem = bridges.Problem(3, g)
    for i, (s1, c) in enumerate(zip(problem.std1**2, problem.coupled, strict=True)):
        precision = np.linalg.inv([[1.0, c], [c, s1]])
        assert precision[0, 1] == pytest.approx(-1 / g**2)
        for t in (0.2, 0.7):
            with_x0, with_x1 = (1 - t) + t * c, (1 - t) * c + t * s1
            assert with_x0 * with_x1 / problem.covariance(t)[i, i] == pytest.approx(c)


@pytest.mark.slow
def test_the_moments_of_a_chain_are_those_of_its_samples():
    problem, sde = bridges.Problem(2, 1.0), LinearPathSDE(diffusion=1.0, alpha_min=1e-6)
    rng = np.random.default_rng(SEED)
    fitted = bridges.match_bridges(np.stack(problem.draw(rng, 4000), axis=1), sde, SEED)
    x1 = problem.draw(rng, 20_000)[1].astype(np.float64)
    x0 = bridges.simulate(bridges.denoiser_of(fitted, sde), np.float32(x1), SEED)
    *_, found = bridges.moments(fitted, sde, x1.mean(0), np.cov(x1.T, bias=True))
    np.testing.assert_allclose(x0.mean(0), found.mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x0.T), found.covariance, atol=0.04)
    np.testing.assert_allclose(np.cov(x0.T, x1.T)[:2, 2:], found.with_start, atol=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("method", bridges.METHODS)
def test_every_method_reaches_the_closed_form_and_independent_pairs_miss_it(method, monkeypatch):
    """Errors of mean and covariance are the largest of all times, that of the coupling is one."""
    if method == "transport in batches":
        pytest.importorskip("ott")
    if method == bridges.DSB:  # its targets are noisy, and its reverse is first order
        monkeypatch.setattr(bridges, "STEPS", 120)
        monkeypatch.setattr(bridges, "ROWS", 20_000)
    problem = bridges.Problem(2, 1.0)
    chain = bridges.solve(method, problem, ROUNDS, SEED)
    found = bridges.errors(problem, chain)
    middle = min(chain, key=lambda moments: abs(moments.t - 0.5))
    variance = np.diag(middle.covariance) / np.diag(problem.covariance(middle.t))
    deviations = np.sqrt(np.diag(chain[-1].covariance)) * problem.std1
    correlation = np.diag(chain[-1].with_start) / deviations - problem.coupled / problem.std1
    assert found["mean"] < 0.05
    if method == "independent pairs":
        assert found["covariance"] > 0.25
        assert np.all(np.abs(variance - 1) > 0.1)
        assert found["coupling"] > 0.08
        return
    assert found["covariance"] < 0.05
    assert found["coupling"] < 0.04
    np.testing.assert_allclose(variance, 1, atol=0.04)
    np.testing.assert_allclose(correlation, 0, atol=0.03)


def test_the_tables_of_bridges_are_those_of_their_results():
    page = (ROOT / "docs" / "bridges.md").read_text()
    tables = {
        "bridges": (bridges.table_of_bridges(), 3 * len(bridges.CASES) * len(bridges.METHODS)),
        "transport": (bridges.table_of_transport(), 4 * 6),
        "reflow": (bridges.table_of_reflow(), 0),
    }
    for name, (table, cells) in tables.items():
        assert table in page, name
        assert table.count("±") == cells
    lines = bridges.RESULTS.lines()
    assert {line["table"] for line in lines} == tables.keys()
    counts = {line["rounds"] for line in lines if line.get("method") in bridges.FITTING}
    (rounds,) = counts
    assert f"had {rounds} rounds after the first" in page
