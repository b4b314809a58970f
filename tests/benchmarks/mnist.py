"""All of MNIST: 60,000 training and 10,000 test images, the report on disk, against the machine's rate.

    python tests/benchmarks/mnist.py ../shared/data/mnist.npz
    python tests/benchmarks/mnist.py mnist.npz --set memory_limit=2GiB --top-k 20

Runs the audit in a process of its own, without Prefect, with a profile: the 20 most harmful and helpful
training examples of every test point, 784 pixels, softmax. For each run it prints seconds, operations and
share of the rates of matrix products, which the same run has measured, by stage; then for cross-influence,
leverages (the stage `influence`) and the whole audit counted operations over time as a share of the rate of
float32 products, which is the stricter measure for what is done in float64, and the same with the operations
counted that pairs would take which are left out, as they cannot be among the strongest; and the peak of the
process's resident memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Share of the rate of float32 products that is wanted, by stage; "audit" is all of them.
WANTED = {"cross_influence": 0.65, "influence": 0.65, "audit": 0.5}
WANTED_MEMORY = 3 * 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="mnist.npz as Keras has it")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--train", type=int, default=60_000, help="at most so many, the first")
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(options.source, Path(folder), {"train": options.train, "test": options.test})
        for number in range(options.runs):
            config = {
                "name": f"mnist-{number}",  # of its own: a fit would begin at the weights of the last run
                "train": {"path": f"{folder}/train.parquet", "id": "id", "label": "label", "features": "x"},
                "test": {"path": f"{folder}/test.parquet"},
                "model": {"kind": "softmax", "l2": 1e-3},
                "influence": {"top_k": options.top_k},
                "report": {"page": False},
                "reports": folder,
            }
            show(run(config, options.settings))


def write(source: Path, folder: Path, most: dict[str, int]) -> None:
    """Both parts as Parquet, pixels from 0 to 1."""
    with np.load(source) as data:
        for part, count in most.items():
            pixels = data[f"x_{part}"].reshape(-1, 784)[:count].astype(np.float32) / 255.0
            table = pa.table(
                {
                    "id": pa.array(np.arange(len(pixels))),
                    "label": pa.array(data[f"y_{part}"][:count].astype(np.int64)),
                    "x": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 784),
                }
            )
            pq.write_table(table, folder / f"{part}.parquet")


def run(config: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """run.json of an audit in a process of its own."""
    code = (
        "import json, sys, influence_batch\n"
        "config, settings = json.loads(sys.argv[1])\n"
        "report = influence_batch.audit(config, overrides=settings, profile=True)\n"
        "print(json.dumps(report.run))"
    )
    command = [sys.executable, "-c", code, json.dumps([config, settings])]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def show(record: dict[str, Any]) -> None:
    profile = record["profile"]
    rates, stages = profile["rates"], {stage["name"]: stage for stage in profile["stages"]}
    line = f"{record['train']['rows']} x {record['test']['rows']}, {rates['threads']} threads: "
    line += f"{rates['float64'] / 1e9:.0f} GF/s in float64, {rates['float32'] / 1e9:.0f} in float32\n"
    total = {"seconds": 0.0, "flops": 0.0}
    shares = {}
    for name, stage in stages.items():
        flops = stage["flops_float64"] + stage["flops_float32"]
        total["seconds"] += stage["seconds"]
        total["flops"] += flops
        shares[name] = flops / stage["seconds"] / rates["float32"] if stage["seconds"] else 0.0
        own = stage["share_of_rate"]
        line += f"  {name:16s}{stage['seconds']:8.2f} s, peak {stage['peak_memory_bytes'] / 2**20:6.0f} MiB, "
        line += f"{stage['flops_float64']:.3g} flops in float64, {stage['flops_float32']:.3g} in float32"
        line += "\n" if own is None else f", {own:.0%} of the rate of their types\n"
        if stage["not_counted"]:
            line += f"    not counted: {', '.join(stage['not_counted'])}\n"
    shares["audit"] = total["flops"] / total["seconds"] / rates["float32"]
    # Pairs that a bound leaves out are not multiplied: a share of that work says little of its speed.
    contrasts = record["model"]["parameters"] * (1 - 1 / record["model"]["outputs"])
    left_out = 2.0 * record["train"]["rows"] * record["test"]["rows"] * contrasts
    left_out -= stages["cross_influence"]["flops_float32"]
    seconds = {"cross_influence": stages["cross_influence"]["seconds"], "audit": total["seconds"]}
    line += f"  in all {total['seconds']:.1f} s, {total['flops']:.3g} flops\n"
    for name, wanted in WANTED.items():
        line += f"  {name}: {shares[name]:.0%} of the rate of float32 products; wanted: {wanted:.0%}"
        if name in seconds:
            whole = shares[name] + left_out / seconds[name] / rates["float32"]
            line += f"; {whole:.0%} if pairs that are left out count"
        line += "\n"
    peak = record["peak_memory_bytes"]
    line += f"  peak memory {peak / 2**30:.2f} GiB; wanted: {WANTED_MEMORY / 2**30:.0f} GiB at most\n"
    sys.stdout.write(line)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
