"""Train in a run's folder: cadence, files, and stopping.

Training continues from the folder's latest good checkpoint. Data order and randomness are functions
of the step, so the result equals that of a run that never stopped.
"""

import math
import signal
import sys
from collections.abc import Sequence
from contextlib import closing

from absl import logging
from tqdm import tqdm

from denoising import Denoiser
from errors import CheckpointError, MisfitError, WorkdirError
from experiment.data import Batches
from experiment.options import TrainingOptions
from experiment.randomness import base_key
from files.writing import write_json
from jobs.averages import Snapshots
from jobs.profile import ProfiledSteps, Profiler
from jobs.same_data import require_same_data
from jobs.stop_signals import stop_signals
from jobs.teacher import params_of_student
from jobs.training_job import TrainingJob
from jobs.training_loop import Loop
from jobs.training_report import Plots, conclude
from jobs.workdir import Workdir, run_and_step
from training.checkpoints import Checkpoints
from training.hosts import agreed
from training.metrics_log import MetricsLog, last_step, read_log
from training.parallel import DataParallel
from training.step import TrainState


def train(job: TrainingJob, workdir: Workdir, profiled: ProfiledSteps | None = None) -> bool:
    """Train to the last step; return False if the run was trained already.

    `profiled` are steps to trace.
    SIGTERM and Ctrl-C save a checkpoint and exit with status 128 + the signal's number.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything in the folder is touched.
        TrainingError: for a loss or gradient that is not finite; the last good checkpoint stays.
    """
    require_same_data(job.data, job.ends)
    batches, teacher = job.batches(), job.load_teacher()
    if job.diagnostics is not None:
        job.diagnostics.check()
    with workdir.locked(leads=job.data.parallel.leads):
        changes = workdir.check(job.config, training=True)
        return _train(job, workdir, batches, changes, profiled, teacher)


def _train(
    job: TrainingJob,
    workdir: Workdir,
    batches: Batches,
    changes: Sequence[str],
    profiled: ProfiledSteps | None,
    teacher: Denoiser | None,
) -> bool:
    images = job.data.splits.fingerprint
    workdir.check_images(images)
    checkpoints = Checkpoints(workdir.checkpoints, keep=job.options.keep_checkpoints)
    state, origin = _initial_state(job, workdir, checkpoints, teacher)
    step, last = int(state.step), job.options.steps
    if step >= last:
        print(f"{workdir.path} is trained: step {step} of {last}. To continue, give more steps.")
        return False
    _report_batch_size(job.options)
    _report_hardware(job.options, job.data.parallel)
    if note := job.trainer.sharding.note(state.params, job.data.parallel):
        logging.warning("%s", note)
    if profiled is not None:
        profiled.check(step, last)
    for change in changes:
        print(f"changed from step {step} on: {change}")
    workdir.save_config(job.config, images=images, changes=[*changes, *origin], step=step)
    if names := job.data.splits.class_names:
        write_json(workdir.classes, {name: label for label, name in enumerate(names)})
    _report_warmup(job)
    _run(job, workdir, batches, teacher, checkpoints, profiled, state)
    print(f"trained {last} steps")
    if job.diagnostics is not None:
        said = conclude(read_log(workdir.path), job.diagnostics.finest_log_snr)
        print(f"{said or 'measured'}; plots are in {workdir.plots}")
    return True


def _run(
    job: TrainingJob,
    workdir: Workdir,
    batches: Batches,
    teacher: Denoiser | None,
    checkpoints: Checkpoints,
    profiled: ProfiledSteps | None,
    state: TrainState,
) -> None:
    """Train from a state to the last step, and close all that is open; exit if a signal came."""
    step, leads = int(state.step), job.data.parallel.leads
    log = MetricsLog(workdir.path, step=step, config=job.config, wandb=job.wandb, leads=leads)
    finest = math.inf if job.diagnostics is None else job.diagnostics.finest_log_snr
    plots = Plots(workdir.plots, workdir.path, finest)
    snapshots = Snapshots(workdir, job.trainer.more_averages, step)
    profiler = Profiler(profiled, workdir.profile, leads=leads)
    with (
        closing(batches),
        closing(log),
        closing(checkpoints),
        closing(snapshots),
        closing(profiler),
    ):
        with (
            stop_signals(job.data.parallel) as stop,
            tqdm(
                total=job.options.steps,
                initial=step,
                desc="training",
                dynamic_ncols=True,
                mininterval=0.5,
            ) as bar,
        ):
            loop = Loop(
                job=job,
                teacher=teacher,
                checkpoints=checkpoints,
                snapshots=snapshots,
                log=log,
                plots=plots,
                workdir=workdir,
                bar=bar,
                stop=stop,
                profiler=profiler,
            )
            state = loop.run(batches, state)
        checkpoints.wait()
    if stop.signal:
        name = signal.Signals(stop.signal).name
        print(f"stopped by {name} at step {int(state.step)}, saved; rerun the command to continue")
        sys.exit(128 + stop.signal)


def _report_warmup(job: TrainingJob) -> None:
    """Warn of a warm-up that does not end in this training."""
    if (warmup := job.trainer.optimizer.warmup_steps) > job.options.steps:
        logging.warning(
            "the warm-up of %g steps is longer than the training of %d; the learning rate stays "
            "below config.%s.lr. Lower the warm-up, or train longer",
            warmup,
            job.options.steps,
            job.rate_section,
        )


def _report_batch_size(options: TrainingOptions) -> None:
    """Warn of a batch size other than that of the published numbers."""
    ours, published = options.batch_size, options.published_batch_size
    if published and ours != published:
        logging.warning(
            "config.training.batch_size=%d, but the published numbers of this configuration were "
            "made with %d; docs/recipes.md says what changes",
            ours,
            published,
        )


def _report_hardware(options: TrainingOptions, parallel: DataParallel) -> None:
    """Warn of other devices than those of the published numbers."""
    published = options.published_hardware
    if published and not parallel.matches(published):
        logging.warning(
            "the published numbers of this configuration were made on %s, and this run is on %d "
            "%s; that changes the time, and nothing else but rounding (docs/recipes.md)",
            published,
            parallel.devices,
            parallel.kind,
        )


def _initial_state(
    job: TrainingJob, workdir: Workdir, checkpoints: Checkpoints, teacher: Denoiser | None
) -> tuple[TrainState, list[str]]:
    """Return the state of the latest checkpoint, or else the first state of a new run.

    With it come the notes for config.json on where a new run started.

    Raises:
        WorkdirError: if the run has had checkpoints, and they are gone.
        CheckpointError: if none can be loaded, or that of `config.training.init_from` cannot.
    """
    template = job.trainer.abstract_state()
    restored = checkpoints.restore(template)
    if restored is not None:
        print(f"continuing from the checkpoint at step {restored.step}")
        return restored.state, []
    logged = agreed(lambda: last_step(workdir.path))
    if logged >= 2 * job.options.checkpoint_every:
        raise WorkdirError(
            f"{workdir.metrics} reaches step {logged}, but {workdir.checkpoints} holds no "
            "checkpoint. Put the checkpoints back, delete metrics.jsonl to start afresh, or give "
            "another --workdir"
        )
    if not job.options.init_from:
        ours = teacher if job.section == "model" else None  # a dequantizer is another network
        if ours is not None and (params := params_of_student(ours, template.params)):
            state = job.trainer.state_from_params(*params, 0)
            return state, ["started with the parameters of the teacher"]
        return job.trainer.init_state(base_key(job.seed, "init")), []
    run, step = run_and_step(job.options.init_from)
    source, template = Workdir(run), job.trainer.abstract_parameters()
    try:
        other = Checkpoints(source.checkpoints).restore(template, step, partial=True)
    except MisfitError as error:
        differing = source.network_differences(job.config) or [str(error)]
        raise CheckpointError(
            f"config.training.init_from={job.options.init_from!r} holds another network: "
            f"{'; '.join(differing)}. Give these values, or another run"
        ) from error
    if other is None:
        raise _no_start(job.options)
    print(f"starting with the parameters of {run} at step {other.step}")
    state = job.trainer.state_from_params(other.state.params, other.state.ema_params, 0)
    return state, [f"started with the parameters of {run} at step {other.step}"]


def check_start(options: TrainingOptions, workdir: Workdir) -> None:
    """Raise CheckpointError if a run in `workdir` would start at a checkpoint that is not there."""
    if not options.init_from or Checkpoints(workdir.checkpoints).steps():
        return
    run, step = run_and_step(options.init_from)
    checkpoints = Checkpoints(Workdir(run).checkpoints)
    if not checkpoints.steps():
        raise _no_start(options)
    if step is not None:
        checkpoints.config(step)


def _no_start(options: TrainingOptions) -> CheckpointError:
    return CheckpointError(
        f"config.training.init_from={options.init_from!r} holds no checkpoint; give RUN or "
        "RUN:STEP, the folder of a run and a step that is saved there"
    )
