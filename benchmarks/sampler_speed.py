"""Speed of sampling: overhead over the network, compilation, and a comparison with diffusers.

    pip install torch diffusers                          # for the comparison only
    python benchmarks/sampler_speed.py [--cores=2]

Overhead: seconds of a whole call of `sampling.sample` with 20 steps, over those of 20 calls of the
jitted network on a constant input. Diffusers: the same for its U-Net of the same architecture and
number of parameters, with its own DDIM and DPM-Solver++ schedulers, in float32 on the same cores.
Both programs are separate processes whose calls take turns, and ratios are those of the same turn.
Compilation: Predictor-Corrector runs of 10 and of 1000 steps, each in a new process without a
compilation cache. Results are written to benchmarks/results/sampler_speed.jsonl and
sampler_compilation.jsonl.
"""

import argparse
import importlib.util
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator

import numpy as np
from runs import Results, markdown_table, median, provenance
from unets import COMMON, OURS

STEPS = 20
RESULTS = Results("sampler_speed", ("network", "batch", "steps", "device", "cores"))
COMPILED = Results("sampler_compilation", ("steps", "device", "cores"))
DDPM = OURS | {"residual_block": "ddpm", "skip_rescale": False}
# name -> (fields of NCSNpp, arguments of diffusers.UNet2DModel, shape of an image, batch)
SETTINGS = {
    "9M": (
        DDPM | {"features": 64, "blocks_per_resolution": 2},
        COMMON | {"layers_per_block": 2, "block_out_channels": (64, 128, 128, 128)},
        (32, 32, 3),
        8,
    ),
    "digits": (
        DDPM
        | {
            "features": 32,
            "channel_multipliers": (1, 1),
            "blocks_per_resolution": 1,
            "attention_resolutions": (4,),
        },
        COMMON
        | {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": (32, 32),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
        },
        (8, 8, 1),
        16,
    ),
}
Calls = dict[str, Callable[[], object]]


def _denoiser(fields: dict, shape: tuple[int, ...]):
    """Return a denoiser, with a batch of images and time inputs."""
    import jax
    import jax.numpy as jnp

    import sde_lib
    from denoising import Denoiser
    from models.ncsnpp import NCSNpp

    network = NCSNpp(**fields)
    x, cond = jnp.zeros(shape), jnp.full(shape[0], 500.0)
    params = jax.jit(lambda key: network.init(key, x, cond, train=False))(jax.random.key(0))
    apply = jax.tree_util.Partial(_apply(network), params)
    return Denoiser(sde=sde_lib.VPSDE(), network=apply), x, cond


def _apply(network):
    def apply(params, x, cond):
        return network.apply(params, x, cond, train=False)

    return apply


def ours(name: str) -> tuple[Calls, dict]:
    import jax

    import sampling
    from solvers.ddim import DDIM
    from solvers.dpm_solver import DPMSolver
    from solvers.predictor_corrector import EulerMaruyama, PredictorCorrector
    from time_grids import Schedule

    fields, _, shape, batch = SETTINGS[name]
    denoiser, x, cond = _denoiser(fields, (batch, *shape))
    bare = jax.jit(lambda network, x, cond: network(x, cond))
    solvers = {
        "ddim": DDIM(),
        "dpm_solver++": DPMSolver(),
        "pc": PredictorCorrector(predictor=EulerMaruyama()),
    }
    key, schedule = jax.random.key(1), Schedule(steps=STEPS, final_step="mean")

    def network() -> None:
        jax.block_until_ready([bare(denoiser.network, x, cond) for _ in range(STEPS)])

    def sampler(solver) -> Callable[[], object]:
        def call() -> None:
            samples = sampling.sample(key, denoiser, x.shape, solver=solver, schedule=schedule)
            assert samples.nfe == STEPS
            jax.block_until_ready(samples.x)

        return call

    calls = {"network": network} | {kind: sampler(solver) for kind, solver in solvers.items()}
    count = sum(leaf.size for leaf in jax.tree.leaves(denoiser.network))
    return calls, {"parameters": count, "device": jax.devices()[0].device_kind}


def theirs(name: str) -> tuple[Calls, dict]:
    import diffusers
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _, arguments, (height, width, channels), batch = SETTINGS[name]
    unet = diffusers.UNet2DModel(**arguments).eval()
    start = torch.randn(batch, channels, height, width)
    schedulers = {
        "ddim": diffusers.DDIMScheduler(),
        "dpm_solver++": diffusers.DPMSolverMultistepScheduler(),
    }

    @torch.inference_mode()
    def network() -> None:
        for _ in range(STEPS):
            unet(start, 500)

    def sampler(scheduler) -> Callable[[], object]:
        @torch.inference_mode()
        def call() -> None:
            x = start
            scheduler.set_timesteps(STEPS)
            for t in scheduler.timesteps:
                x = scheduler.step(unet(x, t).sample, t, x).prev_sample

        return call

    calls = {"network": network} | {kind: sampler(s) for kind, s in schedulers.items()}
    count = sum(p.numel() for p in unet.parameters())
    return calls, {"parameters": count, "threads": torch.get_num_threads()}


def worker(connection, side: str, name: str) -> None:
    """Send facts and names of calls, then reply to each name with the call's seconds."""
    calls, facts = {"ours": ours, "theirs": theirs}[side](name)
    connection.send((facts, list(calls)))
    while (kind := connection.recv()) != "end":
        start = time.perf_counter()
        calls[kind]()
        connection.send(time.perf_counter() - start)


def compare(name: str, repeats: int, sides: list[str]) -> dict:
    """Return the seconds of 20 evaluations by every call of both programs, in turns."""
    context = multiprocessing.get_context("spawn")
    ends, facts, kinds = {}, {}, {}
    for side in sides:
        ends[side], other = context.Pipe()
        context.Process(target=worker, args=(other, side, name), daemon=True).start()
        other.close()
        facts[side], kinds[side] = ends[side].recv()
    # A call of ours is followed by the same call of theirs, to be compared with it.
    turns = [(side, kind) for kind in kinds["ours"] for side in sides if kind in kinds[side]]
    seconds = {side: {kind: [] for kind in kinds[side]} for side in sides}
    for repeat in range(repeats + 1):
        for side, kind in turns:
            ends[side].send(kind)
            elapsed = ends[side].recv()
            if repeat:  # the first warms up
                seconds[side][kind].append(elapsed)
    for end in ends.values():
        end.send("end")
    return {
        "network": name,
        "batch": SETTINGS[name][3],
        "steps": STEPS,
        **provenance(facts["ours"]["device"]),
        "facts": facts,
        "seconds": seconds,
    }


def spread(ratios: np.ndarray, form: str) -> str:
    low, middle, high = (format(q, form) for q in np.quantile(ratios, [0, 0.5, 1]))
    return f"{middle} ({low} .. {high}, {len(ratios)} pairs)"


def report(result: dict) -> str:
    """Describe the overhead of each sampler, and the ratio of both programs."""
    seconds = {
        side: {kind: np.array(s) for kind, s in kinds.items()}
        for side, kinds in result["seconds"].items()
    }
    facts = result["facts"]
    lines = [
        f"{result['network']}, {facts['ours']['parameters']:,} parameters, batch {result['batch']}"
    ]
    for side, kinds in seconds.items():
        bare = kinds["network"]
        lines.append(f"  {side}: {np.median(bare) / STEPS * 1e3:.2f} ms per call of the network")
        for kind in [kind for kind in kinds if kind != "network"]:
            extra = np.median(kinds[kind] - bare) / STEPS * 1e3
            overhead = spread(kinds[kind] / bare - 1, ".1%")
            lines.append(f"    {kind:14} takes {overhead} more, {extra:.2f} ms per evaluation")
    for kind, theirs_took in seconds.get("theirs", {}).items():
        ratio = spread(theirs_took / seconds["ours"][kind], ".2f")
        lines.append(f"  theirs over ours, {kind:14} {ratio}")
    return "\n".join(lines)


def compile_seconds(connection, steps: int) -> None:
    """Send the seconds of compilation in a PC run of a new process, and those of the run."""
    import jax

    import sampling
    from solvers.predictor_corrector import EulerMaruyama, Langevin, PredictorCorrector
    from time_grids import Schedule

    jax.config.update("jax_enable_compilation_cache", False)
    # Small images take as long to compile.
    denoiser, x, _ = _denoiser(SETTINGS["9M"][0], (1, 16, 16, 3))
    seconds, loops = [], []

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            seconds.append(duration_secs)
            if event.endswith("backend_compile_duration") and "_advance" in str(about):
                loops.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    solver = PredictorCorrector(predictor=EulerMaruyama(), corrector=Langevin())
    schedule = Schedule(steps=steps, final_step="mean")
    start = time.perf_counter()
    samples = sampling.sample(
        jax.random.key(1), denoiser, x.shape, solver=solver, schedule=schedule
    )
    jax.block_until_ready(samples.x)
    whole = time.perf_counter() - start
    device = jax.devices()[0].device_kind
    facts = {"compile": sum(seconds), "loops": len(loops), "whole": whole, "device": device}
    connection.send(facts)


def compilation(repeats: int) -> list[dict]:
    """Return the compile times of 10 and 1000 steps, in turns."""
    context = multiprocessing.get_context("spawn")
    results = []
    for _ in range(repeats):
        for steps in (10, 1000):
            end, other = context.Pipe()
            process = context.Process(target=compile_seconds, args=(other, steps), daemon=True)
            process.start()
            other.close()
            results.append({"steps": steps, **end.recv()})
            process.join()
    return results


def report_compilation(results: list[dict]) -> str:
    short, long = (
        np.array([r["compile"] for r in results if r["steps"] == steps]) for steps in (10, 1000)
    )
    loops = {r["loops"] for r in results}
    return (
        f"Predictor-Corrector, compiled in {np.median(short):.1f} s for 10 steps, "
        f"{np.median(long):.1f} s for 1000: ratio {spread(long / short, '.2f')}; "
        f"programs of the loop: {', '.join(map(str, sorted(loops)))}"
    )


def compile_lines(results: list[dict]) -> Iterator[dict]:
    """Yield a line of results for each number of steps."""
    for steps in sorted({result["steps"] for result in results}):
        runs = [result for result in results if result["steps"] == steps]
        turns = {name: [run[name] for run in runs] for name in ("compile", "loops", "whole")}
        yield {"steps": steps, **provenance(runs[0]["device"]), **turns}


def compile_ratio() -> str:
    """Return how much longer 1000 steps take to compile than 10, the median over turns."""
    short, long = (COMPILED.lines(steps=steps)[0]["compile"] for steps in (10, 1000))
    return f"{np.median(np.divide(long, short)):.2f}"


def table() -> str:
    """Return the table of a run's time over bare calls of the network, and of diffusers' over ours.

    Medians and ranges over turns.
    """
    rows = []
    for line in RESULTS.lines(steps=STEPS):
        ours, theirs = line["seconds"]["ours"], line["seconds"].get("theirs", {})
        for kind in [kind for kind in ours if kind != "network"]:
            over = median(100 * (np.divide(ours[kind], ours["network"]) - 1), ".1f")
            ratio = median(np.divide(theirs[kind], ours[kind])) if kind in theirs else ""
            size = f"{line['facts']['ours']['parameters'] / 1e6:.2f}M, batch {line['batch']}"
            rows.append((size, kind, f"{len(ours[kind])}", over, ratio))
    head = ("network", "sampler", "turns", "more than the network, %", "diffusers' time over ours")
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="9M,digits")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compilations", type=int, default=3)
    parser.add_argument("--cores", type=int, help="cores of both programs; default: all")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    # This comes before JAX or PyTorch start their threads; child processes inherit it.
    os.sched_setaffinity(0, cores)
    sides = ["ours", "theirs"]
    if not all(importlib.util.find_spec(name) for name in ("torch", "diffusers")):
        print("torch and diffusers are not installed: no comparison (pip install torch diffusers)")
        sides = ["ours"]
    for name in options.networks.split(","):
        result = compare(name, options.repeats, sides)
        print(report(result), flush=True)
        RESULTS.put(result)
    if compiled := compilation(options.compilations):
        print(report_compilation(compiled))
        COMPILED.put(*compile_lines(compiled))
    print(table())


if __name__ == "__main__":
    main()
