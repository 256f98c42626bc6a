r"""Accuracy of digits that are guided by words, at several scales and ways of the gradient.

    pip install scikit-learn tokenizers
    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/vp_digits.py --mode=train_perceptor
    python benchmarks/text.py --workdir=runs/vp_digits

Samples of each of the ten words, by the sampler of the run. The judge is a support vector machine
of scikit-learn, trained on the training images alone; it never sees the perceptor. A table for
docs/text.md is printed, and the samples of the first row are written to --figure, a word a row.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import vp_digits
from experiment.build import build
from experiment.experiment import Experiment
from files.pictures import image_grid, write_png
from jobs.perceptor import load_perceptor
from jobs.restore import load_checkpoint
from jobs.workdir import Workdir

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHOWN = 12  # samples of a word in the figure
SETTINGS = (
    {},
    {"scale": 30.0},
    {"scale": 300.0},
    {"through_network": False},
    {"cutouts": 4},
)


def experiment_of(prompt: str, **fields) -> Experiment:
    config = vp_digits.get_config()
    config.guidance.update({"name": "text", "prompt": prompt, **fields})
    return build(config)


class Judge:
    def __init__(self, data) -> None:
        from sklearn.svm import SVC

        splits = data.splits
        self.train, test = (
            data.in_unit_range(np.asarray(part[:])).reshape(len(part), -1)
            for part in (splits.train, splits.test)
        )
        self.machine = SVC().fit(self.train, splits.train_labels)
        self.on_test = self.machine.score(test, splits.test_labels)

    def share(self, samples: np.ndarray, label: int) -> float:
        found = self.machine.predict(samples.reshape(len(samples), -1) / 255)
        return float(np.mean(found == label))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", default="runs/vp_digits")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--figure", default="")
    given = parser.parse_args()
    workdir, first = Workdir(given.workdir), experiment_of("seven")
    checkpoint, judge = load_checkpoint(first, workdir), Judge(first.data)
    vectors = [load_perceptor(experiment_of(word), workdir).targets for word in WORDS]
    splits, perceptor = first.data.splits, checkpoint.perceptor.perceptor
    images = jnp.asarray(first.data.in_unit_range(np.asarray(splits.test[:])))
    nearest = np.argmax(perceptor.embed(images) @ jnp.concatenate(vectors).T, axis=1)
    print(f"judge on test images: {judge.on_test:.1%}")
    print(f"perceptor on test images, nearest word: {np.mean(nearest == splits.test_labels):.1%}")
    print(f"| setting | {' | '.join(WORDS)} | all |\n|{' --- |' * 12}")
    for number, fields in enumerate(SETTINGS):
        experiment, shares, rows = experiment_of("seven", **fields), [], []
        for label, targets in enumerate(vectors):
            prompted = checkpoint.perceptor._replace(targets=targets)
            guided = dataclasses.replace(checkpoint, perceptor=prompted)
            drawn = experiment.sampler.draw(guided, np.arange(given.count)).samples
            shares.append(judge.share(drawn, label))
            rows.append(drawn[:SHOWN])
        p, n = np.mean(shares), given.count * len(WORDS)
        name = ", ".join(f"`{key}={value}`" for key, value in fields.items()) or "default"
        cells = " | ".join(f"{share:.0%}" for share in shares)
        print(f"| {name} | {cells} | {p:.1%} ± {np.sqrt(p * (1 - p) / n):.1%} |", flush=True)
        if given.figure and not number:
            grid = np.stack(rows).reshape(-1, *rows[0].shape[1:])
            write_png(Path(given.figure), image_grid(grid, columns=SHOWN))


if __name__ == "__main__":
    main()
