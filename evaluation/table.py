"""The results of an evaluation as a small table."""

from collections.abc import Iterator

from files.text import table


def summary(results: dict) -> str:
    """The results as a table of name, value, and how far to trust it."""
    rows = [(f"step {results['step']}", "value", "")]
    if loss := results.get("loss"):
        rows.append(("test loss", f"{loss['mean']:.4f}", _error(loss["over_images"], "images")))
    if flow := results.get("bits_per_dim"):
        rows += _flow_rows(flow)
    for name, label in (("continuous_bound", "continuous"), ("discrete_bound", "discrete")):
        if bound := results.get(name):
            parts = ", ".join(
                f"{part} {bound[part]:.4f}"
                for part in ("prior", "diffusion", "decoder", "L_T", "L_t", "L_0")
                if part in bound
            )
            error = _error(bound["over_images"], "images")
            rows.append((f"bits/dim, {label} bound", f"{bound['mean']:.4f}", f"{error} {parts}"))
    rows += _sample_rows(results)
    return table(rows)


def _error(value: float | None, of: str = "") -> str:
    """A standard error for the table; nothing where it is not known."""
    return "" if value is None else f"+- {value:.4f}" + f" ({of})" * bool(of)


def _flow_rows(flow: dict) -> Iterator[tuple[str, str, str]]:
    errors = [
        _error(flow[f"over_{of}"], f"{count}{of}")
        for of, count in (("images", ""), ("draws", f"{flow['draws']} "), ("probes", ""))
    ]
    yield "bits/dim", f"{flow['mean']:.4f}", " ".join(filter(None, errors))
    if flow["importance_weighted"] is not None:
        note = f"bound over {flow['draws']} draws together"
        yield "  importance-weighted", f"{flow['importance_weighted']:.4f}", note
    if "solver_error" in flow:
        solver, truncation = flow["solver_error"], flow["truncation"]
        of = f"on {flow['ladder_images']} images"
        note = f"{_error(solver['standard_error'])} rtol {solver['rtol']:.0e} less used, {of}"
        yield "  solver error", f"{solver['mean']:+.4f}", note
        note = f"{_error(truncation['standard_error'])} bound of the data less that at t_min, {of}"
        yield "  truncation", f"{truncation['mean']:+.4f}", note
        yield "  prior mismatch", f"{flow['prior_mismatch']:.4f}", "of it, at most"
    seconds = f"slowest {flow['nfe_of_slowest']}, {flow['seconds']:.0f} s"
    yield "  network evaluations", f"{flow['nfe']:.0f}", seconds


def _sample_rows(results: dict) -> Iterator[tuple[str, str, str]]:
    if samples := results.get("samples"):
        seeds = len(samples["seeds"])
        note = f"of {seeds} seed{'s' * (seeds > 1)}, NFE {samples['nfe']:.0f}"
        yield "samples", str(samples["count"]), note
    for features, found in results.get("frechet", {}).items():
        for name, value in found.items():
            if name.startswith("to_"):
                yield f"Frechet {name.replace('_', ' ')}", *_spread(value, features)
                if value["rank_deficient"]:
                    yield "  biased", "", "by fewer images than features"
        if "train_to_test" in found:
            yield "  train to test", f"{found['train_to_test']:.4f}", "for scale"
    for features, found in results.get("kid", {}).items():
        note = f"{features} {_error(found['over_images'], 'images')}"
        yield "KID", *_spread(found["mean"], note)
    for features, found in results.get("precision_recall", {}).items():
        yield "precision", *_spread(found["precision"], features)
        yield "recall", *_spread(found["recall"], features)
    for features, found in results.get("inception_score", {}).items():
        yield "Inception Score", *_spread(found, features)


def _spread(value: dict, features: str) -> tuple[str, str]:
    note = features
    if value["std"] is not None:
        note = f"{_error(value['std'], 'std over seeds')}, {note}"
    if "interval" in value:
        low, high = value["interval"]
        note += f", 95% of the first [{low:.4f}, {high:.4f}]"
    return f"{value['mean']:.4f}", note
