"""Show and say how training went, from the lines of metrics.jsonl.

Only what is beyond its error bars is said: three standard errors. The measurements of all steps
share their images, times and noise, so a change between two steps is far more certain than either
value. Its standard error comes from groups of images.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from files.paths import AnyPath
from files.plots import COLORS, Panel, Series, shades, write_plot
from metrics.bits_per_dim import UNITS
from training.metrics_log import read_log

Rows = Sequence[dict[str, Any]]

_HISTORY = 6  # steps whose noise levels are drawn
_SIGNIFICANT = 3  # standard errors
_RISE = 0.01  # of the test loss, below which it does not matter
_GAP = 0.1  # of the loss, below which training and test images count as equal
_LEARNED = 0.8  # of the error without a network: a level is not learned if it is surely above
_LEARNABLE = 0.01  # error without a network, below which the mean of the images says it all
_GRAY = "#888888"
_FIRST_PLOTS = 60.0  # seconds after the start, at the earliest


class Levels(NamedTuple):
    """The noise levels of one step, and by level the errors of the predicted noise.

    `blind` is the error of knowing only the mean and variance of each pixel.
    """

    step: int
    log_snr: Float[np.ndarray, "levels"]
    blind: Float[np.ndarray, "levels"]
    train: Float[np.ndarray, "levels"]
    train_error: Float[np.ndarray, "levels"]
    test: Float[np.ndarray, "levels"]
    test_error: Float[np.ndarray, "levels"]
    gap: Float[np.ndarray, "levels"]
    gap_error: Float[np.ndarray, "levels"]


def noise_levels(rows: Rows) -> list[Levels]:
    """Return the noise levels of all steps at which they were measured."""
    found = []
    for row in rows:
        if table := row.get("noise_levels"):
            log_snr = np.array([float(name) for name in table["test"]])
            columns = (np.array(list(table[name].values())) for name in Levels._fields[2:])
            found.append(Levels(row["step"], log_snr, *columns))
    return found


class Plots:
    """Draws training.png and noise_levels.png of a run, again and again.

    Drawing takes at most one percent of the time, apart from the last plots.

    Args:
        folder: where the plots go.
        workdir: the run's folder.
        finest: the log-SNR above which there is nothing to learn.
    """

    def __init__(self, folder: AnyPath, workdir: AnyPath, finest: float) -> None:
        self._folder, self._workdir, self._finest = folder, workdir, finest
        self._next = time.monotonic() + _FIRST_PLOTS

    def draw(self, *, last: bool = False) -> None:
        """Draw the plots if it is time for them, or for the last ones.

        Raises:
            OSError: if they cannot be written.
        """
        start = time.monotonic()
        if not last and start < self._next:
            return
        rows = read_log(self._workdir)
        step = rows[-1]["step"] if rows else 0
        title = f"{self._workdir.name}, step {step:,}"
        write_plot(self._folder / "training.png", _training_panels(rows), columns=4, title=title)
        if levels := noise_levels(rows):
            panels = _level_panels(levels, self._finest)
            write_plot(self._folder / "noise_levels.png", panels, columns=2, title=title)
        end = time.monotonic()
        self._next = end + 99 * (end - start)


def _column(rows: Rows, label: str, name: str) -> Series:
    """Return the values of a name against the step, with error bars where there are any."""
    kept = [row for row in rows if row.get(name) is not None]
    error = [row.get(f"{name}_error", 0.0) for row in kept]
    return Series(
        label=label,
        x=[row["step"] for row in kept],
        y=[row[name] for row in kept],
        error=error if any(error) else None,
    )


def _training_panels(rows: Rows) -> list[Panel]:
    unit = next((unit for unit in UNITS if any(unit.metric in row for row in rows)), UNITS[0])
    # Without error bars, which are those of one value: all steps share their noise.
    losses = [
        dataclasses.replace(_column(rows, label, name), error=None, color=color)
        for label, name, color in (
            ("each batch", "loss", _GRAY),
            ("training images", "train_loss", COLORS[0]),
            ("test images", "test_loss", COLORS[1]),
        )
    ]
    real = next((row["frechet_real"] for row in reversed(rows) if "frechet_real" in row), None)

    def panel(title: str, *series: Series, **more: Any) -> Panel:
        return Panel(title=title, x_label="step", series=series, **more)

    return [
        panel("Loss", *losses, log_y=True, note="of images: averaged parameters, same noise"),
        panel(
            f"{unit.name.capitalize()} of test data",
            _column(rows, "", unit.metric),
            note="a variational bound, same noise at every step",
        ),
        panel(
            "Frechet distance to training images",
            _column(rows, "samples", "frechet"),
            levels=() if real is None else (("as many test images", real),),
            log_y=True,
            note="few samples of few steps: compare steps only",
        ),
        panel("Gradient norm", _column(rows, "", "grad_norm"), log_y=True),
        panel("Learning rate", _column(rows, "", "lr")),
        panel("Norm of the parameters", _column(rows, "", "weight_norm")),
        panel(
            "Update over parameters",
            _column(rows, "", "update_ratio"),
            log_y=True,
            note="their norms: how far one step moves",
        ),
        panel(
            "Distance of the average",
            _column(rows, "", "average_distance"),
            log_y=True,
            note="from the parameters, over their norm",
        ),
    ]


def _level_panels(levels: list[Levels], finest: float) -> list[Panel]:
    last, kept = levels[-1], _learnable(levels[-1], finest)
    x = last.log_snr

    def panel(title: str, *series: Series, **more: Any) -> Panel:
        return Panel(title=title, x_label="log-SNR (noisy to clean)", series=series, **more)

    def line(label: str, y: np.ndarray, error: np.ndarray | None = None, **more: Any) -> Series:
        """Return a line over the levels where there is something to learn."""
        error = None if error is None else error[kept]
        return Series(label=label, x=x[kept], y=y[kept], error=error, **more)

    splits = (
        ("training images", last.train, last.train_error),
        ("test images", last.test, last.test_error),
    )
    over = [Series(label=label, x=x, y=y, error=error) for label, y, error in splits]
    blind = Series(label="best guess without a network", x=x, y=last.blind, color=_GRAY)
    half = (x[1] - x[0]) / 2
    edge = x[x < finest].max(initial=x[0] - 2 * half) + half
    fine = (("finer than gray levels", float(edge), float(x[-1] + half)),) if edge < x[-1] else ()
    chosen = sorted({round(k) for k in np.linspace(0, len(levels) - 1, _HISTORY)})
    return [
        panel(
            "Error of the predicted noise",
            *over,
            blind,
            spans=fine,
            log_y=True,
            note="mean square per dimension; 1 for predicting no noise",
        ),
        panel(
            "Error relative to the best guess",
            *(line(label, y / last.blind, error / last.blind) for label, y, error in splits),
            levels=(("not learned", 1.0),),
            from_zero=True,
            note="where there is something to learn",
        ),
        panel(
            "Overfitting: test error above training error, in %",
            line("", 100 * last.gap / last.train, 100 * last.gap_error / last.train),
            levels=(("no difference", 0.0),),
            note="overfitting where bars stay above 0",
        ),
        panel(
            "Test error by step, relative to the best guess",
            *(
                line(f"step {levels[k].step:,}", levels[k].test / levels[k].blind, color=color)
                for k, color in zip(chosen, shades(len(chosen)), strict=True)
            ),
            levels=(("not learned", 1.0),),
            from_zero=True,
            note="the same images and noise at every step",
        ),
    ]


def _learnable(levels: Levels, finest: float) -> Bool[np.ndarray, "levels"]:
    """Return the levels where images show more than their mean, and more than their rounding."""
    return (levels.blind > _LEARNABLE) & (levels.log_snr < finest)


def conclude(rows: Rows, finest: float) -> str:
    """Return one line: overfitting and noise levels that are not learned, if there are any.

    Args:
        rows: the log of a run.
        finest: the log-SNR above which there is nothing to learn.
    """
    levels = noise_levels(rows)
    found = [*_loss_trend(rows), *(_dead_levels(levels[-1], finest) if levels else ())]
    return "; ".join(found)


def _loss_trend(rows: Rows) -> Iterator[str]:
    """Yield what the losses of training and test images say."""
    measured = [row for row in rows if "test_loss_groups" in row]
    if not measured:
        return
    test, train = (
        np.array([row[f"{split}_loss_groups"] for row in measured]) for split in ("test", "train")
    )
    best = int(test.mean(axis=1).argmin())
    rise, since = test[-1] - test[best], measured[best]["step"]
    gap, level = test[-1] - train[-1], train[-1].mean()
    if _exceeds(rise, _RISE * test[best].mean()):
        percent = f"{rise.mean() / test[best].mean():.0%}"
        if _exceeds(train[-1] - train[best], 0.0):
            yield (
                f"test loss rose by {percent} since step {since}, and that of training images too: "
                "training is unstable; lower config.optim.lr"
            )
        else:
            yield (
                f"test loss rose by {percent} since step {since}: overfitting; stop earlier, or "
                "raise config.model.dropout"
            )
    elif _exceeds(gap, _GAP * level):
        error = _standard_error(gap) / level
        yield (
            f"test loss is {gap.mean() / level:.0%} (+- {error:.0%}) above that of training "
            "images: overfitting begins; more images or config.model.dropout help"
        )
    else:
        trend = "its lowest" if best == len(test) - 1 else f"as at step {since}"
        yield f"test loss {test[-1].mean():.4g} is {trend}, and near that of training images"


def _dead_levels(levels: Levels, finest: float) -> Iterator[str]:
    """Yield where the network predicts the noise no better than without looking at the image."""
    error = (levels.train + levels.test) / 2
    spread = _SIGNIFICANT * np.maximum(levels.train_error, levels.test_error)
    surely = error - spread
    dead = (error > levels.blind) & (surely > _LEARNED * levels.blind)
    # Where the mean of the images says it all, a small excess is no harm.
    dead &= _learnable(levels, finest) | ((levels.blind <= _LEARNABLE) & (surely > _LEARNABLE))
    if not dead.any():
        yield "all noise levels with something to learn are learned"
        return
    half = (levels.log_snr[1] - levels.log_snr[0]) / 2
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dead, [0]])))
    parts = []
    for first, end in edges.reshape(-1, 2):
        low, high = levels.log_snr[first] - half, levels.log_snr[end - 1] + half
        inside = slice(first, end)
        least, most = (f(error[inside] / levels.blind[inside]) for f in (np.min, np.max))
        error_there = f"error {least:.3g} to {most:.3g} times that of the best guess"
        parts.append(f"{low:.1f} to {high:.1f} ({error_there})")
    yield f"noise levels with log-SNR {' and '.join(parts)} are not learned"


def _exceeds(values: Float[np.ndarray, "groups"], bound: float) -> bool:
    """Return whether the mean of groups is above a bound, and above 0 beyond its error."""
    return bool(values.mean() > max(bound, _SIGNIFICANT * _standard_error(values)))


def _standard_error(values: Float[np.ndarray, "groups"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
