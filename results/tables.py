"""The tables of docs/results.md, made from the files of the records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = tuple[str, ...]

RESULTS = Path(__file__).resolve().parent
CHOICES = RESULTS.parent / "benchmarks" / "results" / "likelihood_recipe.jsonl"
DOCUMENT = RESULTS.parent / "docs" / "results.md"


def read_lines(path: Path) -> list[Any]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def names() -> list[str]:
    """Return the results that are there."""
    return sorted(path.parent.name for path in RESULTS.glob("*/record.json"))


def read(name: str, file: str) -> Any:
    """Return the content of a record's file of JSON."""
    return json.loads((RESULTS / name / f"{file}.json").read_text())


def likelihoods() -> list[Row]:
    """Return the rows of bits/dim, by the ODE and by the variational bound."""
    head = ("by the ODE", "images x draws", "evaluations", "solver error", "truncation")
    rows: list[Row] = [("result", *head, "by the bound", "images x draws", "evaluations")]
    for name in names():
        results = read(name, "eval")
        exact, bound = results.get("bits_per_dim"), results.get("continuous_bound")
        if exact is None and bound is None:
            continue
        rows.append((f"`{name}`", *_ode_cells(exact), *_estimate_cells(bound)))
    return rows


def _estimate_cells(found: dict[str, Any] | None) -> tuple[str, str, str]:
    """Return a mean over images with its standard error, their number, and the evaluations."""
    if found is None:
        return "", "", ""
    images = f"{found['images']:,} x {found['draws']}"
    return f"{found['mean']:.3f} ± {found['over_images']:.3f}", images, f"{found['nfe']:.0f}"


def _ode_cells(found: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the estimate, and what the solver and the smallest time add to it."""
    budget = ("solver_error", "truncation")
    errors = ((found or {}).get(name) for name in budget)
    signed = (
        "" if each is None else f"{each['mean']:+.4f} ± {each['standard_error']:.4f}"
        for each in errors
    )
    return *_estimate_cells(found), *signed


def samples() -> list[Row]:
    """Return the rows of Frechet distances."""
    columns = ("samples to training images", "corrected", "test images to training images")
    rows: list[Row] = [("result", "features", *columns)]
    for name in names():
        for features, found in read(name, "eval").get("frechet", {}).items():
            distance = found["to_train"]
            to_train = f"{distance['mean']:.3f} ± {distance['std']:.3f}"
            corrected = ""
            if distance["corrected"] is not None:
                corrected = f"{distance['corrected']:.3f} ± {distance['standard_error']:.3f}"
            cells = (to_train, corrected, f"{found['train_to_test']:.3f}")
            rows.append((f"`{name}`", features, *cells))
    return rows


def choices() -> list[Row]:
    """Return the rows of short runs with one choice undone."""
    rows = [("recipe", "steps", "bound, bits/dim", "change")]
    lines = read_lines(CHOICES)
    whole = {
        (line["seed"], line["steps"]): line["bound"] for line in lines if line["name"] == "all"
    }
    for line in lines:
        change = line["bound"] - whole[line["seed"], line["steps"]]
        bound = f"{line['bound']:.3f} ± {line['over_images']:.3f}"
        rows.append((line["name"], str(line["steps"]), bound, f"{change:+.3f}"))
    return rows


def costs() -> list[Row]:
    """Return the rows of what each result took."""
    rows = [("result", "commit", "images seen", "training", "evaluation", "on")]
    for name in names():
        record = read(name, "record")
        training, evaluation = (
            [cost for cost in record["costs"] if cost["mode"] == mode] for mode in ("train", "eval")
        )
        rows.append(
            (
                f"`{name}`",
                max(training, key=lambda cost: cost["cpu_seconds"])["commit"],
                f"{record['images_seen']:,}",
                _time(training),
                _time(evaluation),
                _machine(record),
            )
        )
    return rows


def _machine(record: dict[str, Any]) -> str:
    devices = record["devices"]
    return record["machine"] if set(devices) == {"cpu"} else f"{len(devices)} x {devices[0]}"


def _time(costs: list[dict[str, Any]]) -> str:
    wall, cpu = (sum(cost[f"{kind}_seconds"] for cost in costs) for kind in ("wall", "cpu"))
    return f"{wall / 60:.1f} min, {cpu / 60:.1f} CPU min"


# By the name in the document, between <!-- table: NAME --> and <!-- end -->.
TABLES: dict[str, Callable[[], list[Row]]] = {
    "likelihoods": likelihoods,
    "samples": samples,
    "choices": choices,
    "costs": costs,
}


def filled(document: str) -> str:
    """Return the document with its tables written anew."""
    for name, make in TABLES.items():
        head, *rows = make()
        lines = [head, ("---",) * len(head), *rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        before, mark, rest = document.partition(f"<!-- table: {name} -->\n")
        after = rest[rest.index("<!-- end -->") :]
        document = f"{before}{mark}{text}\n{after}"
    return document


def write() -> None:
    """Write the tables of docs/results.md anew."""
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))
