"""Tucker-2 and CP (tensorly) beside the factors that `factorize` makes: error of each layer's response at equal multiply-adds.

    python benchmarks/tucker.py --data PATH/cifar10_jpeg.zip --weights resnet20_cifar10.safetensors     # needs tensorly

The 3x3 convolutions inside the blocks of ResNet-20 with its trained weights on CIFAR-10 (JPEG), each by itself: k x k -> 1x1,
k x k core, 1x1 by `tensorly.decomposition.partial_tucker`; spatial factors, as they are and with the second one refitted; the
low-rank map of responses; spatial factors and, where it keeps more energy, that map behind them. Tucker-2 also with its last
factor refitted by least squares, and with core and last factor fitted to the data (reduced rank on the inputs that its first
factor gives). CP: 1x1, depthwise k x k, 1x1 by `tensorly.decomposition.parafac`, as it is and with the last one refitted. Ranks:
those that keep most of the energy within the multiply-adds, a kernel's for spatial and CP factors, the responses' for the map
(`factorize` takes the responses' for all three). Squared error on 256 held-out images as
a share of the response's variance, after a constant, fit on 512; 20 points an image, three seeds for images and points. One and a
half core-minutes. The committed run had tensorly 0.10.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _criteria import RESULTS, markdown
from safetensors.torch import load_file
from torch import Tensor, nn

from prunus.files import write_atomically
from prunus.laboratory.images import scoring_batches
from prunus.pipeline.result import environment
from prunus.reconstruction.factors import spatial_matrix
from prunus.sources import load_data
from prunus.sources.cifar import cifar_resnet

SHARES = (0.5, 0.25, 0.2)
POINTS = 20


@torch.no_grad()
def covariances(model: nn.Module, batches: list[Any], seed: int) -> dict[str, Tensor]:
    """Layer -> centred covariance of the patches that it reads, float64."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {}

    def note(name: str, conv: nn.Conv2d) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            patches = F.unfold(args[0], 3, padding=1, stride=conv.stride)
            at = torch.rand(len(patches), patches.shape[2], generator=generator).topk(POINTS).indices
            parts.setdefault(name, []).append(patches.gather(2, at.unsqueeze(1).expand(-1, patches.shape[1], -1)).movedim(1, 2))

        return hook

    hooks = [conv.register_forward_pre_hook(note(name, conv)) for name, conv in layers(model).items()]
    for x, _ in batches:
        model(x)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(found).flatten(0, 1).double().T.cov() for name, found in parts.items()}


def layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3}


def refitted(weight: Tensor, inner: Tensor, covariance: Tensor) -> Tensor:
    """Least squares for the last factor, the ones in front of it giving ``inner`` @ patch."""
    cross = inner @ covariance
    gram = cross @ inner.T
    ridge = 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return (torch.linalg.solve(gram + ridge, cross @ weight.T)).T @ inner


def low_rank(weight: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """The nearest map of this rank to what ``weight`` gives."""
    axes = torch.linalg.eigh(weight @ covariance @ weight.T)[1][:, -rank:]
    return axes @ axes.T @ weight


def kept(energies: Tensor) -> Tensor:
    """Share of the energy in the first 1, 2, ... components, of energies in descending order."""
    return energies.cumsum(0) / energies.sum()


def factors(conv: nn.Conv2d, covariance: Tensor, share: float) -> dict[str, Tensor]:
    """Way -> the matrix (outputs, patch) that its factors amount to, at most ``share`` of the multiply-adds."""
    kernel = conv.weight.detach().double()
    weight, (outputs, inputs, k, _) = kernel.flatten(1), kernel.shape
    area = conv.stride[0] ** 2  # positions of the input for every one of the output
    height = conv.stride[0]
    most = share * weight.numel()
    found: dict[str, Tensor] = {}
    u, s, v = torch.linalg.svd(spatial_matrix(kernel), full_matrices=False)
    energy = torch.linalg.eigvalsh(weight @ covariance @ weight.T).flip(0)

    def spatial(rank: int) -> tuple[Tensor, Tensor]:
        """The product, and what its first factor gives at the three columns of a patch: (rank * columns, patch)."""
        first = (u[:, :rank] * s[:rank]).T.reshape(rank, inputs, k)
        inner = torch.zeros(rank, k, inputs, k, k, dtype=torch.float64)
        for column in range(k):
            inner[:, column, :, :, column] = first
        inner = inner.reshape(rank * k, -1)
        return v[:rank].reshape(rank, outputs, k).permute(1, 0, 2).reshape(outputs, -1) @ inner, inner

    rank = int(most // (k * (inputs * height + outputs)))
    product, inner = spatial(rank)
    found["spatial factors"] = product
    found["spatial factors, refitted"] = refitted(weight, inner, covariance)
    rank = int(most // (weight.shape[1] + outputs))
    found["responses"] = low_rank(weight, covariance, rank)
    together = [
        (float(kept(s**2)[r - 1] * kept(energy)[q - 1]), r, q)
        for r in range(1, len(s))
        for q in range(1, outputs)
        if r * k * inputs * height + r * k * q + q * outputs <= most
    ]
    alone = max(r for r in range(1, len(s)) if r * k * (inputs * height + outputs) <= most)
    _, rank, q = max([*together, (float(kept(s**2)[alone - 1]), alone, outputs)])
    product, inner = spatial(rank)
    reading = inner if q == outputs else product
    found["spatial factors and responses"] = low_rank(refitted(weight, reading, covariance), covariance, q)
    found |= tucker(kernel, weight, covariance, most, area)
    return found


def tucker(kernel: Tensor, weight: Tensor, covariance: Tensor, most: float, area: int) -> dict[str, Tensor]:
    """The three kinds of Tucker-2, and both of CP."""
    from tensorly import set_backend
    from tensorly.decomposition import parafac, partial_tucker

    set_backend("pytorch")
    outputs, inputs, k, _ = kernel.shape
    energies = [kept(torch.linalg.svdvals(kernel.movedim(axis, 0).flatten(1)) ** 2) for axis in (0, 1)]
    _, q, r = max(
        (float(energies[0][q - 1] * energies[1][r - 1]), q, r)
        for q in range(1, outputs + 1)
        for r in range(1, inputs + 1)
        if inputs * r * area + r * q * k * k + q * outputs <= most
    )
    (core, (last, first)), _ = partial_tucker(kernel, rank=[q, r], modes=[0, 1], init="svd", n_iter_max=100)
    inner = torch.einsum("qrhw,ir->qihw", core, first).flatten(1)
    reading = torch.einsum("ir,hx,wy->rhwixy", first, torch.eye(k).double(), torch.eye(k).double()).reshape(r * k * k, -1)
    parts = int(most // (inputs * area + k * k + outputs))
    scales, (rows, columns, windows) = parafac(kernel.flatten(2), parts, n_iter_max=100, init="random", random_state=0)
    depthwise = torch.einsum("r,ir,ar->ria", scales, columns, windows).flatten(1)
    return {
        "CP": rows @ depthwise,
        "CP, last factor refitted": refitted(weight, depthwise, covariance),
        "Tucker-2": last @ inner,
        "Tucker-2, last factor refitted": refitted(weight, inner, covariance),
        "Tucker-2, core and last factor fitted": low_rank(refitted(weight, reading, covariance), covariance, q),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = cifar_resnet("resnet20")
    model.load_state_dict(load_file(args.weights))
    model.eval()
    data = load_data(f"cifar10:{args.data}", train_limit=2000, check_images=False)
    errors: dict[str, dict[float, list[float]]] = {}
    for seed in range(args.seeds):
        batches = scoring_batches(data, 768, 64, seed)
        fit, held = covariances(model, batches[:8], seed), covariances(model, batches[8:], seed)
        for share in SHARES:
            of_layers: dict[str, list[float]] = {}
            for name, conv in layers(model).items():
                weight = conv.weight.detach().double().flatten(1)
                spread = (weight @ held[name] @ weight.T).trace()
                for way, product in factors(conv, fit[name], share).items():
                    gap = weight - product
                    of_layers.setdefault(way, []).append(float((gap @ held[name] @ gap.T).trace() / spread))
            for way, values in of_layers.items():
                errors.setdefault(way, {}).setdefault(share, []).append(statistics.mean(values))
                print(seed, share, way, f"{errors[way][share][-1]:.3f}", flush=True)
    store(errors, args.seeds)


def store(errors: dict[str, dict[float, list[float]]], seeds: int) -> None:
    command = f"python benchmarks/tucker.py --data cifar10_jpeg.zip --weights resnet20_cifar10.safetensors --seeds {seeds}"
    means = {way: {str(s): [statistics.mean(v), statistics.stdev(v)] for s, v in rows.items()} for way, rows in errors.items()}
    tree = {"command": command, "environment": environment(), "error of the response, mean and deviation": means}
    write_atomically(RESULTS / "tucker.json", (json.dumps(tree, indent=1) + "\n").encode())
    cells = [[way, *(f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in rows.values())] for way, rows in means.items()]
    about = (
        f"Made by `{command}` on {tree['environment']['cpu']}, torch {tree['environment']['torch']}. Squared error of a layer's "
        "response on held-out images as a share of its variance, mean over the 18 3x3 convolutions of ResNet-20, by the share of "
        f"multiply-adds that stays; mean ± standard deviation over {seeds} draws of images and points."
    )
    head = ("way", *(f"{share:g}" for share in SHARES))
    text = "\n".join([about, "", *markdown(head, cells)]) + "\n"
    write_atomically(RESULTS / "tucker.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
