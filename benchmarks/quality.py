"""Few-step networks, lengths of the average, and autoguidance, on the digits.

    python benchmarks/quality.py [--seeds=3] [--folder=FOLDER]
    python benchmarks/quality.py --table

For each seed it trains configs/consistency_digits.py: the teacher, both consistency models and four
rounds of progressive distillation, each of these three for as many images as the teacher. All are
measured by the Frechet distance between pixels of 1500 samples and the training images. The
teacher's run also has the averages of several lengths, by the Frechet distance and by bits/dim of
the 297 test images, and the bad model of autoguidance, which is the teacher at a quarter of its
training. Results go to results/quality.jsonl; what is there is not repeated. A seed takes about
six minutes on two cores. `--table` prints the tables of docs/ and draws its figures.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from runs import ROOT, Results, evaluated, experiment_of, frechet_of, spread, trained

RESULTS = Results("quality", ("part", "name", "seed", "steps"))
CONFIGURATION = "configs/consistency_digits.py"
LENGTHS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2)
SCALES = (1.0, 1.5, 2.0, 3.0)
FEW = {
    "teacher, UniPC": (5, 10, 20),
    "consistency distillation": (1, 2, 4),
    "consistency training": (1, 2, 4),
    "progressive distillation": (1, 2, 4),
}
ROUNDS = (8, 4, 2, 1)
# Of one network each: part, values, the one that the others are compared with, what is measured.
FRECHET = "Frechet distance to training images"
CURVES = (
    ("length", LENGTHS, 0.05, {"frechet": FRECHET, "bits_per_dim": "Bits/dim of test images"}),
    ("autoguidance", SCALES, 1.0, {"frechet": FRECHET}),
)
AXES = {
    "length": "length of the average, sigma_rel",
    "autoguidance": "autoguidance scale; 1 is without guidance",
}
FIGURES = {"length": "ema_lengths.png", "autoguidance": "autoguidance.png"}


class Seed:
    """The runs of one seed, in a folder."""

    def __init__(self, seed: int, steps: int, folder: Path) -> None:
        self._seed, self._steps, self._folder = seed, steps, folder / f"seed_{seed}"

    def _fields(self, steps: int, **more: Any) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "training.steps": steps,
            "training.checkpoint_every": max(steps // 4, 1),
            "training.keep_checkpoints": 0,
            "training.sample_every": 0,
            "diagnostics.every": 0,
            "eval.dequantizations": 1,
            "eval.error_budget_images": 0,
            "eval.sampling_seeds": 1,
            "eval.metrics": ("frechet",),
            "sampling.seed": self._seed,
            **more,
        }

    def _line(self, part: str, name: str, **values: Any) -> None:
        key = {"part": part, "name": name, "seed": self._seed, "steps": self._steps}
        RESULTS.add(key | values)

    def _missing(self, part: str, names: Any) -> list[str]:
        key = {"part": part, "seed": self._seed, "steps": self._steps}
        return [str(name) for name in names if not RESULTS.has(**key, name=str(name))]

    @property
    def teacher(self) -> Path:
        return self._folder / "teacher"

    def _teacher_fields(self) -> dict[str, Any]:
        return self._fields(self._steps, **{"ema.snapshot_every": max(self._steps // 50, 1)})

    def run(self) -> None:
        """Train and measure all that is not done."""
        trained(f"{CONFIGURATION}:teacher", self._teacher_fields(), self.teacher)
        self._few_of_teacher()
        self._autoguidance()
        self._lengths()
        for kind in ("distillation", "training"):
            self._consistency(kind)
        self._progressive()

    def _few_of_teacher(self) -> None:
        for name in self._missing("teacher, UniPC", FEW["teacher, UniPC"]):
            fields = self._teacher_fields() | {"sampling.steps": int(name) - 1}
            found = evaluated(f"{CONFIGURATION}:teacher", fields, self.teacher)
            self._line("teacher, UniPC", name, frechet=frechet_of(found))

    def _autoguidance(self) -> None:
        bad = max(self._steps // 4, 1)
        for name in self._missing("autoguidance", SCALES):
            fields = self._teacher_fields() | {
                "guidance.name": "autoguidance",
                "guidance.run": f":{bad}",
                "guidance.scale": float(name),
            }
            found = evaluated(f"{CONFIGURATION}:teacher", fields, self.teacher)
            self._line("autoguidance", name, frechet=frechet_of(found))

    def _lengths(self) -> None:
        import run_lib
        from jobs.workdir import Workdir

        if not self._missing("length", LENGTHS):
            return
        fields = self._teacher_fields() | {"eval.metrics": ("bits_per_dim", "frechet")}
        experiment, workdir = experiment_of(f"{CONFIGURATION}:teacher", fields), self.teacher
        run_lib.reconstruct_averages(
            experiment, Workdir(workdir), length=",".join(map(str, LENGTHS))
        )
        for length in LENGTHS:
            file = workdir / "eval" / f"{self._steps}-length_{length}.json"
            found = json.loads(file.read_text())
            values = {"frechet": frechet_of(found), "bits_per_dim": found["bits_per_dim"]["mean"]}
            self._line("length", str(length), **values)

    def _consistency(self, kind: str) -> None:
        part, folder = f"consistency {kind}", self._folder / kind
        missing = self._missing(part, FEW[part])
        fields = self._fields(self._steps)
        if kind == "distillation":
            fields["loss.teacher"] = str(self.teacher)
        if missing:
            trained(f"{CONFIGURATION}:{kind}", fields, folder)
        for name in missing:
            few = fields | {"sampling.steps": int(name)}
            found = evaluated(f"{CONFIGURATION}:{kind}", few, folder)
            self._line(part, name, frechet=frechet_of(found))

    def _progressive(self) -> None:
        part, teacher = "progressive distillation", self.teacher
        if not self._missing(part, ROUNDS):
            return
        for count in ROUNDS:
            more = {"loss.student_steps": count, "loss.teacher": str(teacher)}
            fields = self._fields(self._steps // len(ROUNDS), **more)
            teacher = self._folder / f"student_{count}"
            trained(f"{CONFIGURATION}:progressive", fields, teacher)
            if self._missing(part, [count]):
                found = evaluated(f"{CONFIGURATION}:progressive", fields, teacher)
                self._line(part, str(count), frechet=frechet_of(found))


def values_of(part: str, name: Any, field: str, steps: int) -> list[float]:
    """Return a number over seeds."""
    lines = sorted(RESULTS.lines(), key=lambda line: line["seed"])
    key = {"part": part, "name": str(name), "steps": steps}
    return [line[field] for line in lines if all(line[k] == v for k, v in key.items())]


def interval(values: Iterable[float]) -> float:
    """Return half the length of the 95% interval of a mean, by Student's t; 0 for one value."""
    from scipy.stats import t

    array = np.array(list(values))
    if len(array) < 2:
        return 0.0
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(t.ppf(0.975, len(array) - 1) * error)


def tables(steps: int) -> Iterator[str]:
    """Yield the Markdown tables: mean and standard deviation over seeds.

    Networks are the same for all lengths and scales. So differences by seed are more precise than
    means; they have 95% intervals.
    """
    columns = (1, 2, 4, 5, 8, 10, 20)
    yield f"| evaluations | {' | '.join(map(str, columns))} |"
    yield "|---|" + "---|" * len(columns)
    for part in FEW:
        found = (values_of(part, name, "frechet", steps) for name in columns)
        yield f"| {part} | {' | '.join(spread(each) if each else '' for each in found)} |"
    for part, names, reference, fields in CURVES:
        yield ""
        yield f"| {part} | {' | '.join(map(str, names))} |"
        yield "|---|" + "---|" * len(names)
        for field, title in fields.items():
            groups = [np.array(values_of(part, name, field, steps)) for name in names]
            seeds = min(map(len, groups))
            if not seeds:
                continue
            yield f"| {title} | {' | '.join(map(spread, groups))} |"
            base = groups[names.index(reference)][:seeds]
            differences = [group[:seeds] - base for group in groups]
            cells = (f"{each.mean():+.3f} ± {interval(each):.3f}" for each in differences)
            yield f"| minus that of {reference} | {' | '.join(cells)} |"


def draw(steps: int) -> None:
    """Draw the figures of docs/: differences against length and scale."""
    from files.plots import Panel, Series, write_plot

    for part, names, reference, fields in CURVES:
        panels = []
        for field, title in fields.items():
            groups = [np.array(values_of(part, name, field, steps)) for name in names]
            seeds = min(map(len, groups))
            if not seeds:
                continue
            differences = [each[:seeds] - groups[names.index(reference)][:seeds] for each in groups]
            series = Series(
                label="",
                x=names,
                y=[float(np.mean(each)) for each in differences],
                error=[interval(each) for each in differences],
            )
            panel = Panel(
                title=f"{title.partition(' to ')[0]}, minus that of {reference}",
                x_label=AXES[part],
                series=(series,),
                levels=(("no difference", 0.0),),
                note=f"mean and 95% interval of {seeds} training seeds; lower is better",
            )
            panels.append(panel)
        if panels:
            write_plot(ROOT / "docs" / "assets" / FIGURES[part], panels, columns=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="of the runs, kept; default: a temporary one")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in () if options.table else range(options.seeds):
            Seed(seed, options.steps, options.folder or Path(scratch)).run()
    print("\n".join(tables(options.steps)))
    if options.table:
        draw(options.steps)


if __name__ == "__main__":
    main()
