"""Memory per device of a training step, with replicated and with divided parameters.

    python benchmarks/memory.py                      # ADM 512 and DiT-XL/2 on 8 devices
    python benchmarks/memory.py --network=dit --batch=256

XLA compiles the whole step for 8 simulated CPU devices and reports what each of them holds
(`memory_analysis`); nothing is executed. LLVM does not optimize, which changes no buffer. A GPU or
TPU has other kernels and schedules, so that its temporary buffers differ; the state does not.
Results are written to benchmarks/results/memory.jsonl.
"""

import argparse
import time

from runs import Results, markdown_table

RESULTS = Results("memory", ("network", "shard", "batch", "remat", "compute_dtype", "devices"))
# name -> configuration, fields. DiT-XL/2 has no file: its images are 32x32x4 latents.
NETWORKS = {
    "adm_512": ("configs/adm_imagenet.py:512", {}),
    "dit": (
        "configs/adm_imagenet.py:256",
        {
            "data.image_size": 32,
            "data.channels": 4,
            "model.name": "dit",
            "model.features": 1152,
            "model.depth": 28,
            "model.heads": 16,
            "model.patch_size": 2,
            "model.channel_multipliers": None,
            "classifier.channel_multipliers": (1,),
        },
    ),
}


def measured(name: str, shard: str, batch: int, remat: bool, dtype: str) -> dict:
    import jax

    from experiment.build import build
    from experiment.configurations import load_configuration
    from jobs.compiled import train_cost

    file, fields = NETWORKS[name]
    config = load_configuration(file)
    config.update_from_flattened_dict(
        fields
        | {
            "training.batch_size": batch,
            "model.remat": remat,
            "model.compute_dtype": dtype,
            "parallel.shard": shard,
        }
    )
    start = time.time()
    experiment = build(config)
    trainer = experiment.trainer
    params = trainer.abstract_state().params
    cost = train_cost(experiment)
    return {
        "network": name,
        "shard": shard,
        "batch": batch,
        "remat": remat,
        "compute_dtype": dtype,
        "devices": experiment.parallel.devices,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "state_bytes": cost.kept,
        "temporary_bytes": cost.temporary,
        "peak_bytes": cost.peak,
        "seconds": round(time.time() - start),
    }


def table() -> str:
    """Return GB per device in the default setting, with replicated and with divided parameters."""
    names = {"dit": "DiT-XL/2, 32x32x4", "adm_512": "`configs/adm_imagenet.py:512`"}
    rows, kinds = [], ("state", "temporary")
    setting = {"batch": 8, "remat": True, "compute_dtype": "bfloat16", "devices": 8}
    for network, shown in names.items():
        lines = {line["shard"]: line for line in RESULTS.lines(network=network, **setting)}
        if len(lines) == 2:
            sides = lines["none"], lines["params"]
            sizes = [side[f"{kind}_bytes"] for kind in kinds for side in sides]
            sizes += [sum(side[f"{kind}_bytes"] for kind in kinds) for side in sides]
            parameters = f"{sides[0]['parameters'] / 1e6:.1f}M"
            rows.append((shown, parameters, *(f"{size / 1e9:.2f}" for size in sizes)))
    ways = ("replicated", "`shard=params`")
    head = [f"{kind}, {way}" for kind in (*kinds, "sum") for way in ways]
    return markdown_table(("network", "parameters", *head), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=[*NETWORKS, "all"], default="all")
    parser.add_argument("--shard", choices=["none", "params", "both"], default="both")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--remat", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    options = parser.parse_args()

    import jax

    jax.config.update("jax_num_cpu_devices", options.devices)
    names = NETWORKS if options.network == "all" else (options.network,)
    for name in names:
        for shard in ("none", "params") if options.shard == "both" else (options.shard,):
            row = measured(name, shard, options.batch, options.remat, options.dtype)
            print(row, flush=True)
            RESULTS.put(row)
    print(table())


if __name__ == "__main__":
    main()
