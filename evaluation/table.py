"""The results of an evaluation as rows of a table: name, value, uncertainty."""

from collections.abc import Iterator
from typing import Any

from experiment.kinds import KINDS

Row = tuple[str, str, str]


def loss_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of the test loss."""
    yield "test loss", f"{result['mean']:.4f}", _error(result["over_images"], result["rows"])


def ode_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of -log p per dimension by the ODE, with the error budget."""
    errors = [
        _error(result[f"over_{source}"], name)
        for source, name in (
            ("images", result["rows"]),
            ("draws", f"{result['draws']} draws"),
            ("probes", "probes"),
        )
    ]
    yield result["unit"], f"{result['mean']:.4f}", " ".join(filter(None, errors))
    parts = ("prior", "divergence", "dequantization")
    yield "  the sum of", "", ", ".join(f"{name} {result[name]:.4f}" for name in parts)
    if result["tau"] is not None:
        note = "deviations of the noise at likelihood.t_min; about 3 is best"
        yield "  half a gray level", f"{result['tau']:.2f}", note
    if result["importance_weighted"] is not None:
        note = f"bound over {result['draws']} draws together"
        yield "  importance-weighted", f"{result['importance_weighted']:.4f}", note
    if "solver_error" in result:
        solver, truncation = result["solver_error"], result["truncation"]
        images = f"on {result['error_budget_images']} {result['rows']}"
        note = f"at rtol {solver['rtol']:.0e}, minus that at the rtol used, {images}"
        error = _error(solver["standard_error"])
        yield "  solver error", f"{solver['mean']:+.4f}", f"{error} {note}"
        if truncation is not None:
            note = f"cost of clean data above that of data noised to t_min, {images}"
            error = _error(truncation["standard_error"])
            yield "  truncation", f"{truncation['mean']:+.4f}", f"{error} {note}"
        yield "  prior mismatch", f"{result['prior_mismatch']:.4f}", "at most"
    one, seconds = KINDS[result["rows"]].one, f"{result['seconds']:.0f} s in all"
    note = f"mean per {one}; slowest {one} {result['nfe_of_slowest']}; {seconds}"
    yield "  network evaluations", f"{result['nfe']:.0f}", note


def nats_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of `ode_rows`, with log p of a whole row of the data."""
    rows = ode_rows(result)
    yield next(rows)
    yield "log-likelihood in nats", f"{result['nats']:.4f}", f"mean over the test {result['rows']}"
    yield from rows


def log_density_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of the log-density of an energy, with its constant where that is known."""
    note = f"{_error(result['over_images'], result['rows'])} in nats, at t = {result['t']:g}"
    yield "log-density, up to a constant", f"{result['mean']:.4f}", note
    if result["log_z"] is not None:
        yield "  log Z", f"{result['log_z']:.4f}", "its constant, integrated over the plane"
        mean = f"mean over the test {result['rows']}"
        yield "log-likelihood in nats", f"{result['nats']:.4f}", mean


def continuous_bound_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of the bound in continuous time."""
    yield _bound_row("continuous", result, ("prior", "diffusion", "decoder", "dequantization"))


def discrete_bound_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of the bound of a chain."""
    yield _bound_row("discrete", result, ("L_T", "L_t", "L_0"))


def rate_distortion_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the row of the bits that bring the error of a predicted image below 10 of 255."""
    pairs = zip(result["rate"], result["distortion"], strict=True)
    enough = next((rate for rate, distortion in pairs if distortion < 10), None)
    last = f"at last {result['distortion'][-1]:.1f} after {result['rate'][-1]:.3f} bits/dim"
    yield "bits/dim to an error of 10 of 255", "-" if enough is None else f"{enough:.3f}", last


def _bound_row(label: str, result: dict[str, Any], names: tuple[str, ...]) -> Row:
    parts = ", ".join(f"{name} {result[name]:.4f}" for name in names)
    note = f"{_error(result['over_images'], result['rows'])} {parts}"
    return f"{result['unit']}, {label} bound", f"{result['mean']:.4f}", note


def samples_row(samples: dict[str, Any]) -> Row:
    """Return the row that describes the samples of an evaluation."""
    seeds = len(samples["seeds"])
    note = f"per seed, {seeds} seed{'s' * (seeds > 1)}, NFE {samples['nfe']:.0f}"
    return "samples", str(samples["count"]), note


def frechet_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of Frechet distances by each extractor."""
    for features, found in result.items():
        for name, value in found.items():
            if name.startswith("to_"):
                yield f"Frechet {name.replace('_', ' ')}", *_cells(value, features)
                if value["rank_deficient"]:
                    yield "  biased", "", "fewer images than features"
        if "train_to_test" in found:
            yield "  train to test", f"{found['train_to_test']:.4f}", "for scale"


def kid_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of kernel distances by each extractor."""
    for features, found in result.items():
        note = f"{features} {_error(found['over_images'], 'images')}"
        yield "KID", *_cells(found["mean"], note)


def baseline_rows(name: str, result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of a distance by each extractor, with that of two halves of the data."""
    for features, found in result.items():
        yield name, *_cells(found, features, digits=5)
        yield "  data to data", f"{found['baseline']:.5f}", "two halves of the data, for scale"


def precision_recall_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of precision and recall by each extractor."""
    for features, found in result.items():
        yield "precision", *_cells(found["precision"], features)
        yield "recall", *_cells(found["recall"], features)


def inception_score_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of Inception Scores by each extractor."""
    for features, found in result.items():
        yield "Inception Score", *_cells(found, features)


def _error(value: float | None, source: str = "") -> str:
    """Format a standard error; nothing where it is unknown."""
    return "" if value is None else f"+- {value:.4f}" + f" ({source})" * bool(source)


def _cells(value: dict[str, Any], features: str, digits: int = 4) -> tuple[str, str]:
    note = features
    if value["std"] is not None:
        note = f"{_error(value['std'], 'std over seeds')}, {note}"
    if "interval" in value:
        low, high = value["interval"]
        note += f", 95% interval of the first [{low:.4f}, {high:.4f}]"
    return f"{value['mean']:.{digits}f}", note
