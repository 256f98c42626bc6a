"""Bytes of the test images, compressed by a run's model and by PNG, WebP and xz.

    python benchmarks/bits_back.py RUN --config=FILE --config.discrete_bound.steps=100 ...
    python benchmarks/bits_back.py RUN --config=FILE --images=1000 ...

Further arguments are those of --mode=compress. --images takes the first ones alone. Each other
format has its smallest file for one picture of all images, and for separate ones; xz packs the gray
levels, a byte each. Last come the bits of the images without those to begin with, and their bound.
Results are written to benchmarks/results/bits_back.jsonl.
"""

import argparse
import ast
import contextlib
import io
import lzma
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from runs import ROOT, Line, Results, discrete_bits, markdown_table

from experiment.build import build
from files.pictures import image_grid
from jobs.workdir import Workdir

RESULTS = Results("bits_back", ("run", "images", "fields"))


def saved(image, **options):
    """The bytes of an image in a format of Pillow."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, **options)
    return file.tell()


def bound_of(run: str, count: int, flags: list[str]) -> float:
    """Return the mean discrete bound of the first test images, with the fields of flags."""
    import scoresde as ss

    model = ss.load(run)
    config, fields = model.experiment.config, {}
    for flag in flags:
        name, _, value = flag.removeprefix("--config.discrete_bound.").partition("=")
        if name in config["discrete_bound"]:
            with contextlib.suppress(ValueError):
                value = ast.literal_eval(value)
            fields[name] = value
    return discrete_bits(config, model.checkpoint, fields, count)


def table(line: Line) -> str:
    """Return the table of a line of results."""
    sizes, pixels = line["bytes"], line["pixels"]

    def row(text: str, *names: str) -> tuple[str, str, str]:
        bits = (f"{8 * sizes[name] / pixels:.3f}" for name in names)
        return text, "; ".join(f"{sizes[name]:,}" for name in names), "; ".join(bits)

    alone = f"{line['bits_alone']:.3f} (the bound: {line['bound']:.3f})"
    rows = [
        row("all of the file", "this model"),
        ("images alone", f"{line['bits_alone'] * pixels / 8:,.0f}", alone),
        row("xz of the gray levels", "xz"),
    ]
    for name in ("WebP, lossless", "PNG"):
        both = (f"{name}, {how}" for how in ("one picture", "separate files"))
        rows.append(row(f"{name}: one picture of all images; separate files", *both))
    return markdown_table(("", "bytes", "bits/dim"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--images", type=int, help="the first images alone; all without it")
    given, more = parser.parse_known_args()
    data = build(Workdir(given.run).read_config()).data
    images = np.asarray(data.splits.test[: given.images])
    sizes = {"xz": len(lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME))}
    formats = {
        "PNG": {"format": "PNG", "optimize": True},
        "WebP, lossless": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    }
    for name, options in formats.items():
        sizes[f"{name}, one picture"] = saved(image_grid(images), **options)
        sizes[f"{name}, separate files"] = sum(saved(image, **options) for image in images)
    with tempfile.TemporaryDirectory() as folder:
        target, source = Path(folder, "code"), f"--source=test:0-{len(images) - 1}"
        command = [sys.executable, "main.py", "--mode=compress", f"--workdir={given.run}", source]
        done = subprocess.run(
            [*command, f"--target={target}", *more], cwd=ROOT, text=True, capture_output=True
        )
        sys.stderr.write(done.stderr if done.returncode else "")
        done.check_returncode()
        sizes["this model"] = target.stat().st_size
        note = re.search(r"^([\d.]+) bits/dim, plus ([\d,]+) bytes.*$", done.stdout, re.M)
        assert note, done.stdout
    bound = bound_of(given.run, len(images), more)
    line = {"run": Path(given.run).resolve().name, "images": len(images), "fields": " ".join(more)}
    line |= {"pixels": images.size, "bytes": sizes, "bits_alone": float(note[1]), "bound": bound}
    RESULTS.put({**line, "start_bytes": int(note[2].replace(",", ""))})
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        print(f"| {name} | {size:,} | {8 * size / images.size:.3f} |")
    print(f"{note[0]}; the bound: {bound:.4f} bits/dim\n\n{table(line)}")


if __name__ == "__main__":
    main()
