"""The modes of the program, each a few lines on an experiment and its folder.

Training continues from the latest good checkpoint. Data order and randomness are functions of the
step, so the result equals that of a run that never stopped.
"""

from dataclasses import replace

import numpy as np

from errors import ConfigError, require_in, require_memory
from evaluation import references
from evaluation.compare import compare as compare_files
from evaluation.evaluate import dequantizer_of, extractors_of, needs_of
from evaluation.evaluate import evaluate as evaluate_checkpoint
from evaluation.features import check_measurements, diagnostics_extractor, make_extractors
from evaluation.lengths import compare_lengths
from evaluation.protocol import samples_protocol
from experiment.experiment import Experiment
from experiment.sampler import checkpoint_name, unconditioned
from files.paths import AnyPath
from files.pictures import write_gif, write_png_folder
from jobs.averages import parse_lengths, reconstruct
from jobs.bridges import train_bridge as train_bridge
from jobs.compress import compress as compress
from jobs.compress import decompress as decompress
from jobs.demo import serve
from jobs.diagnostics import Diagnostics
from jobs.exchange import export_checkpoint as export_checkpoint
from jobs.exchange import import_checkpoint as import_checkpoint
from jobs.exchange import import_classifier as import_classifier
from jobs.moments import measure_moments
from jobs.pairs import find_simulator
from jobs.perceptor import export_perceptor, load_perceptor
from jobs.plan import describe
from jobs.processes import animate_processes
from jobs.profile import ProfiledSteps
from jobs.restore import (
    TrainedModel,
    checkpoints_of,
    load_checkpoint,
    load_moments,
    load_variance_head,
    restore_average,
)
from jobs.same_data import require_same_data
from jobs.sample import draw_plain
from jobs.teacher import find_teacher
from jobs.train import check_start
from jobs.train import train as run_job
from jobs.training_job import (
    classifier_job,
    dequantizer_job,
    model_job,
    perceptor_job,
    variance_head_job,
)
from jobs.translate import task_run
from jobs.workdir import Workdir
from training.hosts import agreed, require_same

_FRAMES = 40  # snapshots of an animation


def train(experiment: Experiment, workdir: Workdir, *, profile: str | None = None) -> None:
    """Train to `config.training.steps`, from the latest good checkpoint in the workdir if any.

    SIGTERM and Ctrl-C save a checkpoint and exit with status 128 + the signal's number. `profile`,
    such as "10:15", names the first and the last step of a trace.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything in the workdir is touched.
        TrainingError: for a loss or gradient that is not finite; the last good checkpoint stays.
    """
    experiment.require_trainable()
    if experiment.training.sample_every:
        _require_plain_samples(experiment)
    if (name := experiment.model.options.parameterization) == "iddpm":
        raise ConfigError(
            f"config.denoiser.parameterization={name!r} ignores half of the network's outputs, so "
            "that nothing would train them; it is for imported networks. Train with "
            "eps_learned_variance or edm"
        )
    profiled = ProfiledSteps.parse(profile) if profile is not None else None
    diagnostics = None
    if experiment.diagnostics.every:
        extractor = diagnostics_extractor(experiment, workdir)
        diagnostics = Diagnostics(experiment=experiment, extractor=extractor)
    if run_job(model_job(experiment, diagnostics), workdir, profiled):
        samples = f"samples are in {workdir.samples}; " if experiment.training.sample_every else ""
        print(f"{samples}next: --mode=eval or --mode=sample")


def _require_plain_samples(experiment: Experiment) -> None:
    """Raise ConfigError for a sampler that needs more than a network in training."""
    sampler, factor = experiment.sampler, experiment.model.upsampling
    for found, problem in (
        (factor > 1, f"model.upsampling={factor} takes small images, which training has none of"),
        (sampler.task is not None, "task.name is for --mode=sample"),
        ("moments" in sampler.needs, "sampling.name=analytic needs moments of a trained network"),
        ("classifier" in sampler.needs, "guidance.name=classifier needs a trained classifier"),
        ("perceptor" in sampler.needs, "guidance.name=text needs a perceptor of the trained run"),
        ("bad_model" in sampler.needs, "guidance.name=autoguidance is for trained networks"),
    ):
        if found:
            raise ConfigError(
                f"config.{problem}; train with another choice, or with "
                "config.training.sample_every=0"
            )


def train_classifier(experiment: Experiment, workdir: Workdir) -> None:
    """Train the noise-conditional classifier of a run to `config.classifier.steps`.

    Raises:
        as `train`.
    """
    workdir.check(experiment.config, training=False)
    if run_job(classifier_job(experiment), workdir.classifier):
        print("next: --mode=eval with --config.eval.features=\"('classifier',)\"")


def train_dequantizer(experiment: Experiment, workdir: Workdir) -> None:
    """Train the dequantizer of a run, for its latest checkpoint, to `config.dequantizer.steps`.

    Raises:
        as `train`.
    """
    denoiser = load_checkpoint(experiment, workdir).denoiser
    if run_job(dequantizer_job(experiment, denoiser), workdir.dequantizer):
        print("next: --mode=eval with --config.data.dequantization=variational")


def train_variance(
    experiment: Experiment, workdir: Workdir, *, checkpoint: int | None = None, ema: str = ""
) -> None:
    """Train the variance head of a checkpoint, the latest by default.

    It is trained to `config.variance_head.steps`. `ema` chooses the average of the parameters.

    Raises:
        as `train`.
    """
    experiment.model.require_no_image("--mode=train_variance")
    loaded = load_checkpoint(experiment, workdir, checkpoint, ema, needs=frozenset())
    job = variance_head_job(experiment, loaded.denoiser)
    if run_job(job, workdir.variance_head(loaded.name)):
        print(
            "next: --config.sampling.name=analytic --config.sampling.variance=diagonal, or "
            "--config.discrete_bound.variance=diagonal"
        )


def train_perceptor(experiment: Experiment, workdir: Workdir) -> None:
    """Train the perceptor of a run to `config.perceptor.steps`, for config.guidance.name=text.

    Raises:
        as `train`.
    """
    workdir.check(experiment.config, training=False)
    run_job(perceptor_job(experiment), workdir.perceptor)
    folder = export_perceptor(experiment, workdir)
    prompt = experiment.parts.perceptor.captions[0][0]
    print(
        f"it is in {folder}; next: --mode=sample --config.guidance.name=text "
        f"--config.guidance.prompt='{prompt}'"
    )


def evaluate(experiment: Experiment, workdir: Workdir, *, ema: str = "") -> None:
    """Evaluate the checkpoints `config.eval.checkpoints`, by default the latest; each once.

    `ema` chooses the average of the parameters, as in `jobs.restore.restore_average`.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything is computed.
        EvaluationError, IntegrationError, BoundError, SamplingError: for numbers not finite.
    """
    if (task := experiment.sampler.task) is not None:
        raise ConfigError(
            f"config.task.name={task.name!r} is for --mode=sample; evaluate with "
            "config.task.name=generate"
        )
    experiment.model.require_no_image("--mode=eval")
    workdir.check(experiment.config, training=False)
    require_same_data(experiment.data, experiment.ends)
    model_job(experiment).batches()  # missing data are an error now
    steps = experiment.evaluation.checkpoints
    extractors = extractors_of(experiment, workdir)
    dequantizer = dequantizer_of(experiment, workdir)
    checkpoints, needs = checkpoints_of(workdir, ema), needs_of(experiment)
    for step in steps:  # a missing checkpoint is an error before the others are evaluated
        checkpoints.config(step)
        name = checkpoint_name(step, ema)
        if "moments" in needs:
            load_moments(experiment, workdir, name)
        if "variance_head" in needs:
            load_variance_head(experiment, workdir, name)
    for step in steps or (None,):
        checkpoint = load_checkpoint(experiment, workdir, step, ema, needs)
        checkpoint = replace(checkpoint, dequantizer=dequantizer)
        print(evaluate_checkpoint(experiment, checkpoint, workdir, extractors))


def stats(experiment: Experiment, workdir: Workdir, *, target: AnyPath | None = None) -> None:
    """Write the statistics of the training images by each extractor of `config.eval.features`.

    They go to `target`, or to where evaluations of this run look for them.

    Raises:
        ConfigError: if data or weights are missing, or `target` is to hold several statistics.
    """
    extractors = make_extractors(experiment, workdir)
    if target and len(extractors) > 1:
        names = experiment.evaluation.features
        raise ConfigError(f"--target={target} is one file, but config.eval.features={names!r}")
    require_same_data(experiment.data)
    for extractor in extractors:
        default = references.statistics_file(
            experiment.data, "train", extractor, workdir.statistics
        )
        file = target or default
        found = references.compute_statistics(experiment, "train", extractor, file)
        rows = f"{found.count} {experiment.data.kind.name}"
        print(f"statistics of {rows}, {found.mean.size} {extractor.name}: {file}")


def compare(files: list[AnyPath]) -> None:
    """Print two results of --mode=eval side by side.

    Raises:
        ConfigError: unless there are two, measured alike.
    """
    if len(files) != 2:
        raise ConfigError(
            f"--mode=compare takes two results, got {len(files)}: python main.py --mode=compare "
            "runs/a/eval/100.json runs/b/eval/100.json, or two run folders"
        )
    print(compare_files(*files))


def demo(
    experiment: Experiment,
    workdir: Workdir,
    *,
    checkpoint: int | None = None,
    ema: str = "",
    port: int = 8000,
) -> None:
    """Serve a page that draws samples of a checkpoint as they come out of the noise, until Ctrl-C.

    Raises:
        ConfigError, WorkdirError, CheckpointError: if the run has no network of images, on several
            hosts, or if the port cannot be had.
    """
    loaded = load_checkpoint(experiment, workdir, checkpoint, ema, needs=frozenset())
    serve(TrainedModel.of(experiment, loaded), port)


def sample(
    experiment: Experiment,
    workdir: Workdir,
    *,
    num_samples: int = 64,
    checkpoint: int | None = None,
    ema: str = "",
    gif: str = "false",
    png: bool = False,
) -> None:
    """Write images of a checkpoint into a folder of their protocol, `samples/STEP-SAMPLER-DIGEST`.

    It holds samples.npz (uint8, NHWC, or floats in the units of the data), samples.png (with a
    task, the inputs beside their samples) and protocol.json. Of points of the plane it holds
    processes.png too, and of an energy of such points density.png. An animation shows the reverse
    process of the first samples with gif="true", and the predicted samples beside it with gif="x0".
    Of points of the plane, processes.gif is one of processes.png.
    With `png`, a folder holds each image as a file. `ema` chooses the average of the parameters.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything is computed.
    """
    _check_count(experiment, num_samples)
    workdir.require_writable()
    task = experiment.sampler.task
    if png:
        experiment.data.kind.require_images("--png", "leave it out; samples.npz has all")
    if task is None:
        experiment.model.require_no_image("plain samples")
    animates = gif != "false"
    if animates and task is not None and task.options.encodes:
        raise ConfigError(
            f"--gif animates samples, but config.task.name={task.name!r} draws none; leave it out"
        )
    loaded = load_checkpoint(experiment, workdir, checkpoint, ema)
    run = None if task is None else task_run(experiment, task, num_samples)
    protocol = samples_protocol(experiment, loaded, num_samples, run and run.inputs)
    require_same("the inputs or the checkpoint", protocol.fields)
    if experiment.ends.given is not None:  # samples start at rows of data
        require_same_data(experiment.data, experiment.ends)
    if run is None:
        condition, kind = unconditioned, experiment.sampler.name
        result = draw_plain(experiment, loaded, num_samples)
    else:
        condition, kind = run.condition, f"{experiment.sampler.name}-{run.task.name}"
        result = run.run(loaded)
    folder = workdir.samples / protocol.key(f"{loaded.name}-{kind}")
    result.write(folder, protocol.tree)
    print(f"{len(result.samples)} samples of step {loaded.name}, {result.summary}: {folder}")
    if png:
        write_png_folder(folder / "png", result.samples)
    if animates:
        shown = np.arange(min(num_samples, experiment.data.kind.shown))
        drawn = experiment.sampler.draw(
            loaded, shown, frames=_FRAMES, predicts=gif == "x0", condition=condition
        )
        # All with the same axes; each frame, then what is predicted from it.
        pictures = experiment.data.pictures([*drawn.frames, *drawn.predictions])
        count = len(drawn.frames)
        side_by_side = [np.concatenate(pictures[i::count], axis=1) for i in range(count)]
        write_gif(folder / "samples.gif", side_by_side)
        if run is None and (rows := animate_processes(experiment, loaded, _FRAMES)):
            write_gif(folder / "processes.gif", rows)


def moments(
    experiment: Experiment, workdir: Workdir, *, checkpoint: int | None = None, ema: str = ""
) -> None:
    """Measure the second moments of a network, for samplers and bounds with optimal variances.

    `ema` chooses the average of its parameters.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything is computed.
    """
    experiment.model.require_no_image("--mode=moments")
    experiment.ends.require_noise("--mode=moments")
    workdir.require_writable()
    workdir.check(experiment.config, training=False)
    require_same_data(experiment.data, experiment.ends)
    model_job(experiment).batches()  # missing data are an error now
    restored = restore_average(experiment, workdir, checkpoint, ema)
    denoiser = experiment.model.denoiser(restored.params)
    file = workdir.moments / f"{checkpoint_name(restored.step, ema)}.npz"
    try:
        measured = measure_moments(experiment, denoiser)
    except ValueError as error:  # NaN of the network
        raise ConfigError(f"step {restored.step} cannot be measured: {error}") from error
    measured.save(file)
    print(
        f"moments of step {restored.step} at {len(measured.times)} times, standard errors up to "
        f"{measured.errors.max():.1e}: {file}; next: --config.sampling.name=analytic, or "
        "--config.discrete_bound.variance=analytic"
    )


def reconstruct_averages(
    experiment: Experiment, workdir: Workdir, *, length: str, checkpoint: int | None = None
) -> None:
    """Make averages of the parameters of any length from a run's snapshots.

    Several lengths, separated by commas, are also evaluated and drawn in `eval/ema_lengths.png`.

    Raises:
        ConfigError, WorkdirError, CheckpointError: for a length that is no number or cannot be
            made, and snapshots that are missing or damaged.
        EvaluationError, IntegrationError, BoundError, SamplingError: as `evaluate`.
    """
    lengths = parse_lengths(length)
    extractors = extractors_of(experiment, workdir) if len(lengths) > 1 else ()
    made = [reconstruct(experiment, workdir, each, checkpoint) for each in lengths]
    for each in made:
        print(f"{each}: {workdir.averages / each.name}; next: --mode=sample --ema={each.name}")
    if len(made) > 1:
        print(compare_lengths(experiment, workdir, made, extractors))


def _check_count(experiment: Experiment, num_samples: int) -> None:
    """Raise ConfigError unless that many images can be drawn, and fit the memory."""
    try:
        require_in("--num_samples", num_samples, "[1, inf)")
        require_memory("--num_samples", num_samples, 3 * num_samples * experiment.data.size)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check(
    experiment: Experiment, workdir: Workdir, *, num_samples: int = 64, compile: bool = False
) -> None:
    """Print what the configuration would do; with `compile`, what XLA says about its programs too.

    Raises a ConfigError if `train`, or `sample` of that many images, would refuse it.
    """
    experiment.require_trainable()
    _check_count(experiment, num_samples)
    if (task := experiment.sampler.task) is not None:
        task_run(experiment, task, num_samples)
    if experiment.trainer.loss.teacher:
        find_teacher(experiment)
    find_simulator(experiment)
    check_start(experiment.training, workdir)
    if "perceptor" in experiment.sampler.needs:
        load_perceptor(experiment, workdir)
    check_measurements(experiment)
    print(describe(experiment, compiled=compile))


def prepare(
    experiment: Experiment, workdir: Workdir, *, target: AnyPath | None, skip_damaged: bool
) -> None:
    """Prepare the data set on disk; with `target`, write its images there as array_record files.

    Images that cannot be read are listed, and left out only with `skip_damaged`.

    Raises:
        ConfigError: if it can neither be found nor downloaded, or images cannot be read.
        OSError: if the disk is full; the same command continues.
    """
    try:
        print(agreed(lambda: experiment.data.prepare(target, skip_damaged=skip_damaged)))
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the system, such as a full disk
        raise ConfigError(str(error)) from error
