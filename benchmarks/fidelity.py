"""Where published code and ours differ by default, and by how much; writes docs/fidelity.md.

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --only=langevin_norms

A row states what the published code does, what ours does, and the fields that give theirs. Its size
is measured on a small case: both settings are built from the named configuration and run on the
same numbers. Samplers run with the exact score of scikit-learn's training digits for the process of
the configuration, so that no trained network is needed. Runs in a few minutes on two cores. The
numbers are in benchmarks/results/fidelity.jsonl. --only replaces one of them, and the page follows.
"""

import argparse
import sys
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from differences import DIFFERENCES, Difference
from runs import Results

from files.writing import write_file

RESULTS = Results("fidelity", ("name",))
PAGE = ROOT / "docs" / "fidelity.md"
HEAD = """# Fidelity

Published code has habits that its papers do not mention. Ours does what the paper says, or what is more exact, by default. This page lists the
differences that are known to change a result, their sizes on a small case, and the fields that give the published behavior.
`python benchmarks/fidelity.py` measures the sizes and writes this page. "Digits" means that the sampler runs with the exact score of scikit-learn's
training digits, 64 samples with the same random numbers on both sides; gray levels are of 255.

What was compared with the original code on the same numbers, and how closely it agrees, is in [Checkpoints](checkpoints.md) for networks and in
[Samplers](samplers.md) for solvers.
"""


def row(difference: Difference, size: str) -> str:
    """Return a difference as a row of its table."""
    fields = " ".join(f"`--config.{name}={value}`" for name, value in difference.fields.items())
    case = f" ({difference.case})" if difference.case else ""
    cells = (difference.published, difference.ours, fields or "none", size + case)
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """Return the page, with the size of each difference."""
    found, lines = {line["name"]: line for line in RESULTS.lines()}, [HEAD]
    sizes = {each.name: each.size for each in DIFFERENCES if not each.measure}
    for each in DIFFERENCES:
        if each.measure:
            line = found.get(each.name)
            sizes[each.name] = each.measure.text.format(**line) if line else "not measured"
    for topic in dict.fromkeys(each.topic for each in DIFFERENCES):
        lines += [
            f"## {topic}",
            "",
            "| published | ours by default | fields that give theirs | size |",
        ]
        lines += ["|---|---|---|---|"]
        lines += [row(each, sizes[each.name]) for each in DIFFERENCES if each.topic == topic]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[each.name for each in DIFFERENCES])
    only = parser.parse_args().only
    for each in DIFFERENCES:
        if each.measure and only in (None, each.name):
            line = {"name": each.name, **each.measure.numbers(*each.experiments())}
            RESULTS.put(line)
            print(f"{each.name:24} {each.measure.text.format(**line)}", flush=True)
    write_file(PAGE, lambda path: path.write_text(page()))


if __name__ == "__main__":
    main()
