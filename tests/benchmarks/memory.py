"""Peak memory and time of a training step by the size of the batch: whole, in chunks, and without activations.

Every setting runs in a process of its own, on the CPU: views, forward, backward and optimizer step of SimCLR on random
gray images. The memory is the largest the process ever held, less what it held before the first step. glibc is told
(MALLOC_MMAP_THRESHOLD_) to give freed memory back at once; a run on a CPU needs that as well to profit as much.

    python tests/benchmarks/memory.py [--net resnet10t] [--size 64] [--setting 256 1024 4096:256 4096:256:checkpoint]

A setting is BATCH[:CHUNK][:checkpoint]. The last line is JSON: {"256": {"mb": ..., "seconds": ...}, ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = ["256", "1024", "1024:256", "1024:256:checkpoint", "4096:256"]

# Without it small tensors that stay, as the embeddings of a chunk do, hold the freed large ones before them in glibc's
# heap, and the peak is one of holes.
TENSORS_ARE_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def peak() -> float:
    """Largest resident size of this process so far, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure(net: str, size: int, setting: str, steps: int) -> dict[str, float]:
    """One setting, in this process."""
    import torch

    from ssl_mednet.imaging.batch import ImageBatch
    from ssl_mednet.imaging.modality import modality
    from ssl_mednet.pretraining.build import build_module
    from ssl_mednet.recipe import load_recipe

    batch, *rest = setting.split(":")
    chunk = next((part for part in rest if part.isdigit()), "0")
    patch = ["backbone.patch_size=8"] if "vit" in net else []
    keys = [
        f"backbone.name={net}",
        f"data.image_size={size}",
        f"optim.batch_size={batch}",
        f"optim.cache_chunk={chunk}",
    ]
    keys += [f"backbone.checkpoint={'checkpoint' in rest}", "train.precision=float32", "train.device=cpu", *patch]
    module = build_module(load_recipe("simclr_gray.yaml", keys), 100, (0.5,), (0.25,))
    optimizer = module.configure_optimizers()["optimizer"]
    n = int(batch)
    images = ImageBatch(
        torch.randint(0, 255, (n, 1, size, size), dtype=torch.uint8),
        torch.full((n, 2), size),
        torch.tensor([[0.0, 255.0]]).repeat(n, 1),
        torch.full((n,), modality("xray").code),
        torch.arange(n),
    )
    before, seconds = peak(), []
    for step in range(steps):
        began = time.perf_counter()
        module.training_step((step, images), step).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {"mb": round(peak() - before), "seconds": round(min(seconds), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet10t")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--setting", nargs="+", default=SETTINGS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measure(args.net, args.size, args.setting[0], args.steps)))
        return
    figures = {}
    for setting in args.setting:
        command = [sys.executable, __file__, "--inside", "--net", args.net, "--size", str(args.size)]
        command += ["--steps", str(args.steps), "--setting", setting]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | TENSORS_ARE_GIVEN_BACK
        )
        if done.returncode:
            print(f"{args.net} {setting:<22} did not fit: exit code {done.returncode}\n{done.stderr[-2000:]}")
            continue
        figures[setting] = found = json.loads(done.stdout.splitlines()[-1])
        rate = int(setting.split(":")[0]) / found["seconds"]
        print(
            f"{args.net} {setting:<22} {found['mb']:6d} MB  {found['seconds']:6.2f} s a step  {rate:6.0f} img/s",
            flush=True,
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
