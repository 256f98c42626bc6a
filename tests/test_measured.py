"""The figures of the documentation that benchmarks measure are those of their results."""

import re
import runpy
import sys

import numpy as np
import pytest
from command_line import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import bad_inputs
import bits_back
import hostile_files
import kills
import power_cuts
from runs import power

README, BENCHMARKS, COMPRESSION, CLUSTERS, RELIABILITY = (
    (ROOT / name).read_text()
    for name in (
        "README.md",
        "docs/benchmarks.md",
        "docs/compression.md",
        "docs/clusters.md",
        "docs/reliability.md",
    )
)
# page, script, function and its arguments -> its rows at least
TABLES = {
    ("benchmarks", "likelihood", "exactness_table", 256): 6,
    ("benchmarks", "likelihood", "published_table", 600, 64, 1e-5): 5,
    ("evaluation", "likelihood", "solvers_table", 600, 64): 4,
    ("benchmarks", "sampler_speed", "table"): 6,
    ("benchmarks", "networks", "table"): 6,
    ("benchmarks", "cpu_training", "table", "convolutions"): 3,
    ("benchmarks", "cpu_training", "table", "memory"): 1,
    ("benchmarks", "memory", "table"): 2,
    ("benchmarks", "metrics", "table"): 2,
    ("benchmarks", "start_up", "table"): 3,
    ("data", "input", "table"): 5,
    ("data", "large_folder", "table"): 3,
}
IDS = ["-".join(map(str, where)) for where in TABLES]


def script(name):
    """Return what a script defines. Some have the names of packages."""
    return runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


@pytest.mark.parametrize(("where", "rows"), TABLES.items(), ids=IDS)
def test_a_table_is_that_of_its_results(where, rows):
    page, name, function, *arguments = where
    table = script(name)[function](*arguments)
    assert len(table.splitlines()) >= 2 + rows, table
    assert table in (ROOT / "docs" / f"{page}.md").read_text()


def test_the_share_of_measurements_is_that_of_its_results():
    text = (ROOT / "docs" / "training.md").read_text()
    for compiles in (True, False):
        lines = script("diagnostics")["RESULTS"].lines(compiles=compiles)
        cpu = np.median([line["measuring_cpu"] / line["cpu"] for line in lines])
        wall = np.median([line["measuring"] / line["seconds"] for line in lines])
        assert re.search(rf"{cpu:.1%}[ \w]* and {wall:.1%}", text)


def test_the_figures_in_sentences_are_those_of_their_results():
    exact = script("likelihood")["EXACT"].lines(points=256)
    assert f"within {power(max(line['error_largest'] for line in exact))} nats" in README
    published = script("likelihood")["PUBLISHED"]
    (two,), (ours,) = (published.lines(side=side) for side in ("SciPy, two programs", "ours"))
    speedup = np.median(np.divide(two["seconds"], ours["seconds"]))
    assert f"likelihoods are {speedup:.1f} times as fast" in README
    (line,) = script("metrics")["STREAM"].lines(images=50_000)
    assert f"at most {line['peak memory in GB']:.2f} GB" in BENCHMARKS
    ratio = script("sampler_speed")["compile_ratio"]()
    assert f"compiles in {ratio} times the time" in BENCHMARKS


def test_the_table_of_compressed_images_is_that_of_its_results():
    for line in bits_back.RESULTS.lines():
        assert bits_back.table(line) in COMPRESSION


def test_kills():
    for text in kills.tried(60, 20):
        assert text in RELIABILITY
    first, _ = kills.tried(20, 0, hosts=2)
    assert first.endswith("all numbers equal")
    assert "after 20 kills" in CLUSTERS


@pytest.mark.parametrize(
    ("campaign", "count"), [(power_cuts, 20), (hostile_files, 1600), (bad_inputs, 2000)]
)
def test_campaigns(campaign, count):
    assert campaign.tried(count) in RELIABILITY
