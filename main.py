"""Score-based generative modelling through SDEs: train, evaluate and sample from the command line.

    python main.py --config=configs/vp_digits.py --mode=train

Any field of the configuration can be overridden: --config.optim.lr=1e-4.
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
_MODE = flags.DEFINE_enum(
    "mode", None, ["train", "eval", "sample", "check", "prepare"], "What to do."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; runs/<config name> if not given."
)
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "sample: step; the latest if not given.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "sample: number of images.")
_GIF = flags.DEFINE_boolean("gif", False, "sample: also animate the reverse process.")
_CACHE = flags.DEFINE_boolean(
    "compilation_cache", True, "Keep compiled programs in the user's cache directory."
)


def main(_: list[str]) -> None:
    # After the flags: a misspelt flag should not wait for JAX to load.
    import jax

    import run_lib
    from checkpoints import CheckpointError
    from experiment import ConfigError
    from ode import IntegrationError
    from workdir import WorkdirError

    if _CACHE.value:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoresde"
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    try:
        _run(run_lib)
    except (
        ConfigError,
        WorkdirError,
        CheckpointError,
        IntegrationError,
        run_lib.TrainingError,
    ) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last save")


def _run(run_lib: object) -> None:
    config, explicit = _CONFIG.value, _explicit_fields()
    path = Path(_WORKDIR.value or Path("runs") / Path(_config_file()).stem)
    match _MODE.value:
        case "train":
            run_lib.train(config, path, explicit=explicit)
        case "eval":
            run_lib.evaluate(config, path, explicit=explicit)
        case "sample":
            run_lib.sample(
                config,
                path,
                count=_NUM_SAMPLES.value,
                checkpoint=_CHECKPOINT.value,
                gif=_GIF.value,
                explicit=explicit,
            )
        case "check":
            run_lib.check(config, explicit=explicit)
        case "prepare":
            run_lib.prepare(config)


def _config_file() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])


def _explicit_fields() -> frozenset[str]:
    return frozenset(config_flags.get_override_values(flags.FLAGS["config"]))


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags; whatever is wrong with them is one line on stderr."""
    try:
        return flags.FLAGS(argv)
    except Exception as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
