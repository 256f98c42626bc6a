"""Tables and figure of `samplers.py`, from its JSON.

    pip install matplotlib
    python benchmarks/sampler_report.py

Writes benchmarks/results/samplers.md and, if matplotlib is installed, docs/assets/samplers.png.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from runs import markdown_table

from files.writing import write_file

RESULTS = ROOT / "benchmarks" / "results" / "samplers.json"
FIGURE = ROOT / "docs" / "assets" / "samplers.png"
TITLES = {
    "vp": "VP",
    "subvp": "sub-VP",
    "cosine": "VP, cosine",
    "linear": "straight path",
    "ve": "VE",
    "edm": "EDM",
}
# Colors (Okabe and Ito's, which color-blind readers can distinguish) and markers of the figure.
FLOW = {
    "DDIM": ("#000000", "o"),
    "DPM-Solver++ 2M": ("#0072B2", "s"),
    "UniPC-3": ("#D55E00", "D"),
    "Heun (EDM)": ("#009E73", "^"),
    "adaptive ODE (bosh3)": ("#CC79A7", "v"),
}
NOISY = {
    "DDIM, eta 1": ("#000000", "o"),
    "SDE-DPM-Solver++ 2M": ("#0072B2", "s"),
    "Analytic-DDIM": ("#E69F00", "P"),
    "Euler-Maruyama": ("#56B4E9", "X"),
    "reverse diffusion + Langevin": ("#009E73", "*"),
}
# A cell: the value that is compared, and the text.
Cell = tuple[float, str]


def number(value: float | None) -> str:
    """Format a value with two digits, or as "diverged"."""
    if value is None:
        return "diverged"
    return f"{value:.1e}" if not 1e-3 <= value < 1000 else f"{value:.2g}"


def _markdown(
    head: list[str], names: list[list[str]], cells: list[list[Cell]], floor: float = 0.0
) -> str:
    """Return a table with the best of each column, or all at the floor, in bold.

    Rows without text are omitted.
    """
    kept = [any(word for _, word in line) for line in cells]
    names = [name for name, keep in zip(names, kept, strict=True) if keep]
    cells = [line for line, keep in zip(cells, kept, strict=True) if keep]
    bounds = [max(floor, min(v for v, _ in column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, line in zip(names, cells, strict=True):
        bold = [value <= bound < math.inf for (value, _), bound in zip(line, bounds, strict=True)]
        words = [f"**{w}**" if b else w for (_, w), b in zip(line, bold, strict=True)]
        lines.append(name + words)
    return markdown_table(head, lines)


def _heads(content: dict) -> list[str]:
    return [f"NFE {budget}" for budget in content["budgets"]]


def overview(content: dict, quantity: str) -> str:
    """Return geometric means over the processes, for solvers within budget on all of them."""
    processes = list(content["processes"].values())
    names, cells = list(processes[0]["rows"]), []
    for name in names:
        line = []
        for budget in map(str, content["budgets"]):
            found = [p["rows"][name]["budgets"].get(budget, {}).get(quantity) for p in processes]
            mean = math.inf if None in found else math.exp(np.mean(np.log(found)))
            line.append((mean, number(mean) if mean < math.inf else ""))
        cells.append(line)
    floor = max(map(_floor, processes)) if quantity == "distance" else 0.0
    return _markdown(["solver", *_heads(content)], [[name] for name in names], cells, floor)


def _floor(facts: dict) -> float:
    return facts["data"] + facts["data_std"]


def _table(content: dict, process: str, cell: Callable[[str, dict], Cell], floor: float) -> str:
    rows = content["processes"][process]["rows"]
    names = [[name, row["grid"]] for name, row in rows.items()]
    cells = [
        [cell(budget, row["budgets"].get(budget, {})) for budget in map(str, content["budgets"])]
        for row in rows.values()
    ]
    return _markdown(["solver", "grid", *_heads(content)], names, cells, floor)


def _distance(budget: str, result: dict) -> Cell:
    if "distance" not in result:
        return math.inf, ""
    value = result["distance"]
    used = "" if result["nfe"] == int(budget) else f" ({result['nfe']})"
    return (math.inf if value is None else value), number(value) + used


def _error(budget: str, result: dict) -> Cell:
    if "error" not in result:
        return math.inf, ""
    words = f"{number(result['error'])} / {number(result['median_error'])}"
    return result["median_error"], words


def markdown(content: dict) -> str:
    """Return all tables, and how they were made."""
    parts = [
        "# Samplers with the exact score of the digits",
        "Made by `benchmarks/samplers.py`, whose docstring describes the measurement: "
        f"{content['count']} samples of each solver, commit {content['commit']}, "
        f"{content['seconds']} s on {content['cores']} cores.",
        "Frechet distance of pixels in [0, 1] to the data; smaller is better. Samples of the data "
        "themselves have a distance above 0, given below. Bold are the distances within a standard "
        "deviation of it, otherwise the column's best. The number of network evaluations is in "
        "brackets where it is below the budget. Geometric mean over the processes:",
        overview(content, "distance"),
        "Error to the exact solution of the probability flow from the same noise: the median over "
        "the images of the root mean square over pixels in [0, 1]. Geometric mean over the "
        "processes:",
        overview(content, "median_error"),
    ]
    for process, facts in content["processes"].items():
        parts += [
            f"## {TITLES[process]}",
            f"Sampling stops at t = {facts['t_min']:.4g}. Frechet distance; for samples of the "
            f"data {number(facts['data'])} +- {number(facts['data_std'])}, for the exact solution "
            f"of the probability flow {number(facts['exact'])}:",
            _table(content, process, _distance, _floor(facts)),
            "Error to the exact solution, root mean square over all images / the median image "
            f"(the error of the exact solution itself is {number(facts['exact_error'])}):",
            _table(content, process, _error, 0.0),
        ]
    return "\n\n".join(parts) + "\n"


def draw(content: dict, path: Path) -> None:
    """Draw distances over network evaluations, one panel per process."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    processes = content["processes"]
    columns = min(3, len(processes))
    rows = -(-len(processes) // columns)
    height = 3.2 * rows + 0.8
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(10.5, height), sharex=True, sharey=True, squeeze=False
    )
    floor = min(facts["data"] for facts in processes.values())
    for axis, (process, facts) in zip(axes.flat, processes.items(), strict=False):
        for style, shown in (("-", FLOW), ("--", NOISY)):
            for name, (color, marker) in shown.items():
                points = facts["rows"].get(name, {"budgets": {}})["budgets"].values()
                points = {p["nfe"]: p["distance"] for p in points if p["distance"] is not None}
                axis.plot(
                    list(points),
                    list(points.values()),
                    style,
                    color=color,
                    marker=marker,
                    markersize=5,
                    markerfacecolor=color if style == "-" else "white",
                    linewidth=1.4,
                    label=name,
                )
        own = "samples of the data itself"
        axis.axhline(facts["data"], color="#dddddd", linewidth=5, zorder=0, label=own)
        axis.set(xscale="log", yscale="log", title=TITLES[process], ylim=(floor * 0.7, 3.3))
        axis.set_xticks(content["budgets"], [str(budget) for budget in content["budgets"]])
        decades = [tick for tick in (0.01, 0.03, 0.1, 0.3, 1, 3) if tick > floor * 0.7]
        axis.set_yticks(decades, [f"{tick:g}" for tick in decades])
        axis.minorticks_off()
        axis.grid(color="#e6e6e6", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("Frechet distance to the data")
    for axis in axes[-1]:
        axis.set_xlabel("network evaluations")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.8 / height, 1, 1))
    write_file(path, lambda temporary: figure.savefig(temporary, dpi=130))


def write_report(content: dict, report: Path, figure: Path) -> None:
    """Write the Markdown file and the figure."""
    text = markdown(content)
    write_file(report, lambda temporary: temporary.write_text(text))
    print(f"written to {report}")
    try:
        draw(content, figure)
    except ModuleNotFoundError as error:
        print(f"no figure: {error} (pip install matplotlib, then benchmarks/sampler_report.py)")
    else:
        print(f"written to {figure}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if not RESULTS.exists():
        sys.exit(f"error: there is no {RESULTS}; run benchmarks/samplers.py first")
    write_report(json.loads(RESULTS.read_text()), RESULTS.with_suffix(".md"), FIGURE)


if __name__ == "__main__":
    main()
