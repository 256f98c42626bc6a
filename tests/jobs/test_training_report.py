"""What is said about a run beyond doubt: overfitting, and noise levels that are not learned."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from jobs import training_report
from jobs.training_report import Plots, conclude, noise_levels

LOG_SNR = np.arange(-9.0, 10.0, 2.0)
BLIND = 1 / (1 + np.exp(-LOG_SNR))
SPLITS = ("train", "test")


def row(step, *, test=1.0, train=1.0, spread=0.3, levels=None, **more):
    """A line of the log; the images differ by `spread`, the same at every step."""
    images = 1 + spread * np.sin(np.arange(16))
    groups = {"test_loss_groups": list(test * images), "train_loss_groups": list(train * images)}
    losses = {f"{name}_loss": float(np.mean(groups[f"{name}_loss_groups"])) for name in SPLITS}
    return {"step": step, **losses, **groups, **(levels or {}), **more}


def levels(factor, *, error=0.01, gap=0.0):
    """Noise levels whose error is `factor` times that of no network, relative errors `error`."""
    means = BLIND * factor
    columns = {
        "blind": BLIND,
        "train": means,
        "train_error": error * means,
        "test": means + gap,
        "test_error": error * means,
        "gap": np.full(len(BLIND), gap),
        "gap_error": error * means,
    }
    names = [f"{value:.2f}" for value in LOG_SNR]
    table = {name: dict(zip(names, map(float, v), strict=True)) for name, v in columns.items()}
    return {"noise_levels": table}


def test_rise_of_the_test_loss_is_overfitting_if_training_images_still_improve():
    rows = [row(100, test=1.2, train=1.1), row(200), row(300, test=1.12, train=0.8)]
    said = conclude(rows, math.inf)
    assert said == (
        "test loss rose by 12% since step 200: overfitting; stop earlier, or raise "
        "config.model.dropout"
    )
    rows[-1] = row(300, test=1.12, train=1.1)
    assert "by 12% since step 200, and that of training images too: training is unstable" in (
        conclude(rows, math.inf)
    )


def test_rise_within_its_error_is_not_said():
    before, after = row(100), row(200)
    change = 1.05 + 0.3 * (-1.0) ** np.arange(16)
    after["test_loss_groups"] = list(change * after["test_loss_groups"])
    assert np.mean(after["test_loss_groups"]) > 1.02 * np.mean(before["test_loss_groups"])
    assert "rose" not in conclude([before, after], math.inf)


def test_gap_between_training_and_test_images_is_said():
    rows = [row(100), row(200, test=0.9, train=0.6)]
    assert conclude(rows, math.inf).startswith("test loss is 50% (+- 3%) above that of training")
    rows[-1] = row(200, test=0.9, train=0.87)
    assert "above" not in conclude(rows, math.inf)


def test_levels_that_are_not_learned_are_named_with_their_error():
    factor = np.where(LOG_SNR > 4, 1.03, 0.5)
    said = conclude([row(1, levels=levels(factor))], math.inf)
    assert said.endswith(
        "noise levels with log-SNR 4.0 to 10.0 (error 1.03 to 1.03 times that of the best guess) "
        "are not learned"
    )
    two = np.where((LOG_SNR > 6) | (np.abs(LOG_SNR) < 2), 1.03, 0.5)
    said = conclude([row(1, levels=levels(two))], math.inf)
    first = "log-SNR -2.0 to 2.0 (error 1.03 to 1.03 times that of the best guess)"
    assert f"{first} and 6.0 to 10.0" in said


@pytest.mark.parametrize(
    ("factor", "error", "finest"),
    [
        (0.7, 0.01, math.inf),
        (1.03, 0.2, math.inf),  # perhaps learned
        (np.where(LOG_SNR > 4, 1.03, 0.5), 0.01, 4.0),  # noise below a gray level
        (np.where(LOG_SNR < -5, 1.2, 0.5), 0.01, math.inf),  # next to no image left
    ],
)
def test_levels_that_are_learned_unclear_or_empty_are_not_named(factor, error, finest):
    said = conclude([row(1, levels=levels(factor, error=error))], finest)
    assert said.endswith("all noise levels with something to learn are learned")


def test_large_errors_where_no_image_is_left_are_named():
    factor = np.where(LOG_SNR < -5, 0.5 / BLIND, 0.5)
    said = conclude([row(1, levels=levels(factor))], math.inf)
    least, most = (f"{0.5 / blind:.3g}" for blind in (BLIND[LOG_SNR < -6].max(), BLIND.min()))
    assert f"log-SNR -10.0 to -6.0 (error {least} to {most} times that of the best guess)" in said


def test_nothing_measured_is_nothing_said():
    assert conclude([], math.inf) == ""
    assert conclude([{"step": 1, "loss": 1.0}], math.inf) == ""
    assert noise_levels([{"step": 1, "loss": 1.0}]) == []


def write_log(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


@pytest.mark.slow
def test_plots_are_drawn_from_any_log_and_rarely(tmp_path, monkeypatch):
    monkeypatch.setattr(training_report, "_FIRST_PLOTS", 0.0)
    plots = Plots(tmp_path / "plots", tmp_path, 4.0)
    files = tmp_path / "plots" / "training.png", tmp_path / "plots" / "noise_levels.png"
    plots.draw()
    assert [file.exists() for file in files] == [True, False], "nothing is measured yet"
    first = files[0].stat().st_mtime_ns
    rows = [
        row(step, levels=levels(0.5 + 1 / step), bits_per_dim=2.0, frechet=1.0, frechet_real=0.5)
        for step in range(2, 10)
    ]
    write_log(tmp_path, [{"step": 1, "loss": 2.0, "grad_norm": 1.0, "lr": 1e-3}, *rows])
    plots.draw()
    assert files[0].stat().st_mtime_ns == first, "drawn a moment ago"
    plots.draw(last=True)
    for file in files:
        with Image.open(file) as image:
            assert min(image.size) > 400
    assert files[0].stat().st_mtime_ns > first
