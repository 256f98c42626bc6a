"""Throughput of our networks and PyTorch's on the same machine, alternating, in one run.

    pip install torch diffusers
    python benchmarks/networks.py                          # CPU: DDPM and DDPM++ of CIFAR-10
    taskset -c 0 python benchmarks/networks.py --processor_time   # on a machine that others use
    python benchmarks/networks.py --suite=edm --edm=DIR    # GPU: EDM's DDPM++, batch 512, bfloat16

The CPU suite compares with the U-Nets of diffusers in the same architecture, as far as they can
express it (DDPM++: without the division of residual sums by sqrt 2). The GPU suite compares with
the network in a checkout of NVlabs/edm in its own mixed precision. Each program is a separate
process with its own peak memory. They take turns, and ratios are those of the same turn. A training
step is the forward and backward pass of the error of the predicted noise, and Adam's update.
Results are written to benchmarks/results/networks.jsonl, with whether both programs keep freed
memory, by three variables of the environment: docs/benchmarks.md.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from runs import Results, markdown_table, median, provenance
from unets import COMMON, OURS

# name -> (fields of NCSNpp, arguments of diffusers.UNet2DModel)
NETWORKS = {
    "ddpm": (
        OURS | {"blocks_per_resolution": 2, "residual_block": "ddpm", "skip_rescale": False},
        COMMON | {"layers_per_block": 2},
    ),
    "ddpmpp": (
        OURS | {"blocks_per_resolution": 4},
        COMMON | {"layers_per_block": 4, "downsample_type": "resnet", "upsample_type": "resnet"},
    ),
}
SETTING = ("suite", "device", "cores", "clock", "keeps_memory")
RESULTS = Results("networks", (*SETTING, "network", "batch", "precision"))
KEEP_MEMORY = {"MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"}
EDM_FIELDS = {"channel_multipliers": (2, 2, 2), "blocks_per_resolution": 4, "dropout": 0.13}
# Dense bfloat16 peaks in FLOP/s, from the data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def ours(name: str, batch: int, precision: str) -> tuple[dict, dict]:
    import jax
    import jax.numpy as jnp
    import optax

    from models.ncsnpp import NCSNpp

    fields = EDM_FIELDS if name == "edm" else NETWORKS[name][0]
    network = NCSNpp(**fields, compute_dtype=precision)
    x = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    cond = jnp.linspace(0.0, 999.0, batch)
    params = jax.jit(lambda key: network.init(key, x[:1], cond[:1], train=False)["params"])(
        jax.random.key(1)
    )
    optimizer = optax.adam(1e-4)

    def loss(params, key, x):
        rngs = {"dropout": key}
        y = network.apply({"params": params}, x, cond, train=True, rngs=rngs)
        return jnp.mean((y - x) ** 2)

    def train(params, opt_state, key, x):
        grads = jax.grad(loss)(params, key, x)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    state = [params, jax.jit(optimizer.init)(params)]
    seconds, start = {}, time.perf_counter()
    forward = (
        jax.jit(lambda p, x: network.apply({"params": p}, x, cond, train=False))
        .lower(params, x)
        .compile()
    )
    seconds["forward"] = time.perf_counter() - start
    start, key = time.perf_counter(), jax.random.key(2)
    step = jax.jit(train, donate_argnums=(0, 1)).lower(*state, key, x).compile()
    seconds["train"] = time.perf_counter() - start
    costs = step.cost_analysis() or {}

    def run_train():
        state[:] = jax.block_until_ready(step(*state, key, x))

    calls = {
        "forward": lambda: jax.block_until_ready(forward(state[0], x)),
        "train": run_train,
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = jax.devices()[0].device_kind
    facts = {"parameters": count, "compile_seconds": seconds, "device": device}
    return calls, facts | {"train_flops": float(costs.get("flops", 0.0))}


def theirs(name: str, batch: int, edm: str | None) -> tuple[dict, dict]:
    import torch

    device = "cuda" if torch.cuda.is_available() and edm else "cpu"
    if edm:
        sys.path.insert(0, edm)
        from training.networks import EDMPrecond

        torch.backends.cudnn.benchmark = True
        network = EDMPrecond(
            32, 3, use_fp16=True, model_type="SongUNet", channel_mult=[2, 2, 2], dropout=0.13
        )
    else:
        import diffusers

        network = diffusers.UNet2DModel(**NETWORKS[name][1])
    network = network.to(device).train()
    x = torch.randn(batch, 3, 32, 32, device=device)
    cond = torch.linspace(0.1, 80.0 if edm else 999.0, batch, device=device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def apply(x):
        return network(x, cond) if edm else network(x, cond).sample

    def finish():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        with torch.no_grad():
            apply(x)
        finish()

    def train():
        optimizer.zero_grad(set_to_none=True)
        torch.mean((apply(x) - x) ** 2).backward()
        optimizer.step()
        finish()

    count = sum(p.numel() for p in network.parameters())
    facts = {"parameters": count, "compile_seconds": {}, "threads": torch.get_num_threads()}
    return {"forward": forward, "train": train}, facts


def worker(connection, side: str, clock: str, arguments: tuple) -> None:
    """Reply to each name of a call with its seconds by a clock of `time`, to "end" with facts."""
    now = getattr(time, clock)
    calls, facts = {"ours": ours, "theirs": theirs}[side](*arguments)
    connection.send("ready")
    while (kind := connection.recv()) != "end":
        start = now()
        calls[kind]()
        connection.send(now() - start)
    facts["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    connection.send(facts)


def compare(
    name: str, batch: int, repeats: int, precision: str, edm: str | None, clock: str
) -> dict:
    """Return the seconds of both programs, in turns."""
    context = multiprocessing.get_context("spawn")
    arguments = {"ours": (name, batch, precision), "theirs": (name, batch, edm)}
    ends = {}
    for side in arguments:
        ends[side], other = context.Pipe()
        process = context.Process(
            target=worker, args=(other, side, clock, arguments[side]), daemon=True
        )
        process.start()
        other.close()
        ends[side].recv()
    seconds = {kind: {side: [] for side in ends} for kind in ("forward", "train")}
    for kind, columns in seconds.items():
        for repeat in range(repeats + 1):
            for side, end in ends.items():
                end.send(kind)
                elapsed = end.recv()
                if repeat:  # the first warms up
                    columns[side].append(elapsed)
    facts = {}
    for side, end in ends.items():
        end.send("end")
        facts[side] = end.recv()
    return {
        "network": name,
        "batch": batch,
        "precision": precision,
        "clock": clock,
        "facts": facts,
        "seconds": seconds,
    }


def report(result: dict) -> str:
    """Describe images per second, ratios per turn with their spread, memory and compilation."""
    facts, batch = result["facts"], result["batch"]
    lines = [f"{result['network']}, batch {batch}, {result['precision']}"]
    for kind, columns in result["seconds"].items():
        ratios = np.array(columns["theirs"]) / np.array(columns["ours"])
        low, middle, high = np.quantile(ratios, [0.0, 0.5, 1.0])
        rates = {side: batch / np.median(s) for side, s in columns.items()}
        lines.append(
            f"  {kind:8}{rates['ours']:9.1f} images/s, theirs {rates['theirs']:9.1f}: "
            f"ratio {middle:.2f} ({low:.2f} .. {high:.2f}, {len(ratios)} pairs)"
        )
    for side, known in facts.items():
        compiled = ", ".join(f"{k} {s:.1f} s" for k, s in known["compile_seconds"].items())
        lines.append(
            f"  {side:8}{known['parameters']:,} parameters, peak memory "
            f"{known['peak_memory_gb']:.2f} GB" + (f", compiled {compiled}" if compiled else "")
        )
    peak = next((p for name, p in PEAKS.items() if name in facts["ours"]["device"]), None)
    if peak:
        rate = facts["ours"]["train_flops"] / np.median(result["seconds"]["train"]["ours"])
        lines.append(
            f"  our training step: {rate / 1e12:.0f} TFLOP/s, {rate / peak:.0%} of the peak"
        )
    return "\n".join(lines)


def rows() -> Iterator[list[str]]:
    """Yield the rows of the table of the CPU suite: a row for each setting, batch and network."""
    for line in RESULTS.lines(suite="cpu"):
        clock = ", processor time" * (line["clock"] == "process_time")
        memory = ", memory kept" * line["keeps_memory"]
        cores = "1 core" if line["cores"] == 1 else f"{line['cores']} cores"
        calls = line["seconds"].values()
        ratios = [np.divide(call["theirs"], call["ours"]) for call in calls]
        turns = f"{len(ratios[0])} pairs"
        yield [
            line["network"],
            f"{cores}{clock}{memory}",
            str(line["batch"]),
            turns,
            *map(median, ratios),
        ]


def table() -> str:
    """Return the table of the CPU suite: times of diffusers over ours, median and range."""
    head = ("network", "on", "batch", "of", "forward", "training step")
    return markdown_table(head, sorted(rows()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=("cpu", "edm"), default="cpu")
    parser.add_argument("--networks", default="ddpm,ddpmpp", help="names, for the CPU suite")
    parser.add_argument("--batch", type=int, help="default: 16 on the CPU, 512 for edm")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--edm", help="a checkout of NVlabs/edm, for --suite=edm")
    parser.add_argument(
        "--processor_time", action="store_true", help="seconds of the processor, for one core"
    )
    options = parser.parse_args()
    clock = "process_time" if options.processor_time else "perf_counter"
    if options.suite == "edm" and not (Path(options.edm or "") / "training/networks.py").is_file():
        sys.exit(f"error: --edm={options.edm!r} is not a checkout of NVlabs/edm; give its folder")
    names = ["edm"] if options.suite == "edm" else options.networks.split(",")
    batch = options.batch or (512 if options.suite == "edm" else 16)
    precision = "bfloat16" if options.suite == "edm" else "float32"
    made = {"suite": options.suite, "keeps_memory": os.environ.keys() >= KEEP_MEMORY}
    for name in names:
        result = compare(name, batch, options.repeats, precision, options.edm, clock)
        print(report(result), flush=True)
        RESULTS.put({**made, **provenance(result["facts"]["ours"]["device"]), **result})
    print(table())


if __name__ == "__main__":
    main()
