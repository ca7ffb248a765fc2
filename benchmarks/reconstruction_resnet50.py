"""Time and memory of reconstructing a whole ResNet-50 at half its multiply-adds, on random images of 64 pixels.

    python benchmarks/reconstruction_resnet50.py [--threads 2] [--images 160] [--points 32]

Random weights with batch-norm statistics that fit them; 5,120 points of every layer, about the paper's 5,000. The images pass
through both networks once, standing still at every layer of the small one until it is refitted, so that time grows with their
number and the depth; solving takes as long whatever their number. The largest resident size is the process's, with everything
that Python and PyTorch load. Wanted: under 3 minutes and 3 GB on two cores. "processor seconds" are those of all
threads together: on a machine that does other things, too, the seconds say less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

import torch
import torchvision
from _criteria import RESULTS

import prunus
from prunus.files import write_atomically
from prunus.pipeline.result import environment
from prunus.reconstruction import LayerFit, recalibrate, reconstruct


def resident_gb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--points", type=int, default=32, help="points of every image")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    full = torchvision.models.resnet50(weights=None).eval()
    batches = [torch.randn(args.batch_size, 3, 64, 64) for _ in range(args.images // args.batch_size)]
    recalibrate(full, batches[:2])
    graph = prunus.trace(full, batches[0][:1])
    plan = prunus.allocate(graph, prunus.score(full, graph, "l1"), prunus.Budget(macs=0.5), "uniform")
    small, record = prunus.remove(full, graph, plan)
    before, started, used = resident_gb(), time.perf_counter(), time.process_time()
    fits: list[LayerFit] = []

    def told(fit: LayerFit) -> None:
        fits.append(fit)
        print(
            f"{time.perf_counter() - started:6.1f} s  {fit.weight}: {fit.error_before:.3f} -> {fit.error_after:.3f}", flush=True
        )

    reconstruct(small, full, record, batches, points=args.points, on_layer=told)
    tree = {
        "command": f"python benchmarks/reconstruction_resnet50.py --threads {args.threads} --images {args.images} "
        f"--points {args.points}",
        "environment": environment(),
        "images": args.images,
        "points per image": args.points,
        "macs kept": plan.predicted.macs / graph.cost().macs,
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - used,
        "load average at the end": os.getloadavg()[0],
        "largest resident size before, GB": before,
        "largest resident size, GB": resident_gb(),
        "layers": [{"weight": f.weight, "error_before": f.error_before, "error_after": f.error_after} for f in fits],
    }
    write_atomically(RESULTS / "reconstruction_resnet50.json", (json.dumps(tree, indent=1) + "\n").encode())
    print({key: value for key, value in tree.items() if key not in ("layers", "environment")})


if __name__ == "__main__":
    main()
