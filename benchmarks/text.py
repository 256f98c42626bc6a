r"""Accuracy of digits that are guided by words, at several scales and ways of the gradient.

    pip install scikit-learn tokenizers
    python main.py --config=configs/vp_digits.py --mode=train
    python main.py --config=configs/vp_digits.py --mode=train_perceptor
    python benchmarks/text.py --workdir=runs/vp_digits
    python benchmarks/text.py --table

Samples of each of the ten words, by the sampler of the run. The judge is a support vector machine
of scikit-learn, trained on the training images alone; it never sees the perceptor. Results go to
results/text.jsonl by the name of the run's folder, and what is there is not repeated. With
--figure, the samples of the first row are drawn and written to that file, a word a row.
"""

import argparse
import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from runs import Results, markdown_table

from configs import vp_digits
from experiment.build import build
from experiment.experiment import Experiment
from files.pictures import image_grid, write_png
from jobs.perceptor import load_perceptor
from jobs.restore import load_checkpoint
from jobs.workdir import Workdir

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHOWN = 12  # samples of a word in the figure
SETTINGS = {
    "`scale=100.0` (default)": {},
    "`scale=30.0`": {"scale": 30.0},
    "`scale=300.0`": {"scale": 300.0},
    "`through_network=False`": {"through_network": False},
    "`cutouts=4`": {"cutouts": 4},
}
COUNT = 100  # samples of each word
RESULTS = Results("text", ("run", "setting"))


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


def table(run: str) -> str:
    """Return the table of what is measured of a run."""
    rows = []
    for line in RESULTS.lines(run=run):
        p, n = np.mean(line["shares"]), COUNT * len(WORDS)
        spread = f"{p:.1%} ± {np.sqrt(p * (1 - p) / n):.1%}"
        rows.append((line["setting"], *(f"{share:.0%}" for share in line["shares"]), spread))
    return markdown_table(("setting", *WORDS, "all"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="runs/vp_digits")
    parser.add_argument("--figure", default="")
    parser.add_argument("--table", action="store_true", help="print what is measured")
    given = parser.parse_args()
    folder = Path(given.workdir)
    if not given.table:
        measure(folder, given.figure)
    print(table(folder.name))


def measure(folder: Path, figure: str) -> None:
    """Measure the settings that are not there, and draw the figure."""
    workdir = Workdir(folder)
    first = experiment_of("seven")
    checkpoint, judge = load_checkpoint(first, workdir), Judge(first.data)
    vectors = [load_perceptor(experiment_of(word), workdir).targets for word in WORDS]
    splits, perceptor = first.data.splits, checkpoint.perceptor.perceptor
    images = jnp.asarray(first.data.in_unit_range(np.asarray(splits.test[:])))
    nearest = np.argmax(perceptor.embed(images) @ jnp.concatenate(vectors).T, axis=1)
    print(f"judge on test images: {judge.on_test:.1%}")
    print(f"perceptor on test images, nearest word: {np.mean(nearest == splits.test_labels):.1%}")

    def drawn(fields: dict, targets: np.ndarray) -> np.ndarray:
        prompted = checkpoint.perceptor._replace(targets=targets)
        guided = dataclasses.replace(checkpoint, perceptor=prompted)
        sampler = experiment_of("seven", **fields).sampler
        return sampler.draw(guided, np.arange(COUNT)).samples

    for setting, fields in SETTINGS.items():
        key = {"run": folder.name, "setting": setting}
        if not RESULTS.has(**key):
            shares = [judge.share(drawn(fields, each), k) for k, each in enumerate(vectors)]
            RESULTS.add({**key, "shares": shares})
    if figure:
        grid = np.concatenate([drawn({}, targets)[:SHOWN] for targets in vectors])
        write_png(Path(figure), image_grid(grid, columns=SHOWN))


if __name__ == "__main__":
    main()
