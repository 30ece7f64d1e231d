r"""Fashion-MNIST in bits per dimension: flow matching with a U-Net beside flows of normflows and zuko, in equal time.

Each model is trained for a number of CPU seconds on the first 59,000 train images, with fresh uniform dequantisation,
the same Gaussianised marginals (`itoflow_data.gaussianised`), AdamW with a cosine that reaches zero when the time is
up, and a moving average of the weights. The last 1,000 train images validate: the curve is on the first of them, at
thirds of the time. The result is on the first 1,000 test images, one dequantisation of each, the same for all models;
standard errors are over images. For flow matching the log density is by dopri5 with one Rademacher probe; the error of
its tolerance (against a tenth of it, same noise and probes) and of the probe (against the exact trace) are printed.

    python tests/benchmarks/fashion_density.py                             half an hour for each model, and evaluations
    python tests/benchmarks/fashion_density.py --models unet --out FOLDER  keep the weights there, and go on from them
    python tests/benchmarks/fashion_density.py --seconds 60 --images 50     a first look

References:
    Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039, for the flow `glow`; normflows' blocks.
    Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057,
    for `maf`; Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032, for `nsf`; zuko's.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from itoflow import InputError
from itoflow.likelihood import bits_per_dimension
from itoflow_train.ema import moving_average
from itoflow_train.evaluation import METHOD
from itoflow_train.loop import build
from itoflow_train.recipe import read
from itoflow_train.values import Values

RECIPE = read("fashion-density", [])
VALIDATION, EXACT = 1000, 4
THIRDS = (1 / 6, 1 / 3, 2 / 3, 1.0)


@dataclass(frozen=True)
class Entry:
    """A model, what it minimises, and its log density of z (B, 1, 28, 28)."""

    module: nn.Module
    loss: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    batch: int
    rate: float


def unet() -> Entry:
    """The recipe's model."""
    model, options = build(RECIPE), RECIPE.training

    def log_prob(z: Tensor, rtol: float = 1e-3, divergence: str = "hutchinson") -> Tensor:
        probes = torch.Generator().manual_seed(1)
        return model.log_prob(z, method=METHOD, divergence=divergence, rtol=rtol, generator=probes)

    return Entry(model, lambda z: model.loss(z).mean(), log_prob, options.batch_size, options.learning_rate)


def glow() -> Entry:
    """normflows' multiscale Glow: two levels of eight blocks, 64 hidden channels, diagonal Gaussian bases."""
    import normflows as nf

    flows, merges, bases = [], [], []
    for level, channels in enumerate((8, 4)):  # coarse to fine, as normflows has them
        flows.append([nf.flows.GlowBlock(channels, 64) for _ in range(8)] + [nf.flows.Squeeze()])
        if level:
            merges.append(nf.flows.Merge())
        side = 14 >> (1 - level)
        bases.append(nf.distributions.DiagGaussian((channels if level == 0 else 2, side, side)))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    return Entry(
        model, lambda z: -model.log_prob(z, None).mean() / z[0].numel(), lambda z: model.log_prob(z, None), 64, 1e-3
    )


def zuko_flow(name: str) -> Entry:
    """Autoregressive flows in raster order and its reverse, in turn."""
    import zuko

    if name == "maf":
        model = zuko.flows.MAF(784, transforms=4, hidden_features=(1024, 1024), activation=nn.SiLU)
    else:
        model = zuko.flows.NSF(784, bins=6, transforms=2, hidden_features=(512, 512), activation=nn.SiLU)
    log_prob = lambda z: model().log_prob(z.flatten(1))  # noqa: E731
    return Entry(model, lambda z: -log_prob(z).mean() / 784, log_prob, 128, 1e-3)


MODELS: dict[str, Callable[[], Entry]] = {
    "unet": unet,
    "glow": glow,
    "maf": lambda: zuko_flow("maf"),
    "nsf": lambda: zuko_flow("nsf"),
}


def train(name: str, entry: Entry, values: Values, x: Tensor, seconds: float, folder: Path) -> None:
    """Train for CPU seconds; the averaged weights at each of `THIRDS` go to the folder."""
    optimizer = torch.optim.AdamW(entry.module.parameters(), entry.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    generator, due, step, losses = torch.Generator().manual_seed(0), list(THIRDS), 0, []
    entry.loss(values.enter(values.noisy(x[:256], generator)))  # actnorm starts from data
    average = moving_average(entry.module, 0.995)
    order, start = torch.empty(0, dtype=torch.long), time.process_time()
    while due:
        elapsed = (time.process_time() - start) / seconds
        if elapsed >= due[0]:
            mean = float(torch.stack(losses).mean())
            print(f"{name}: {elapsed * seconds / 60:5.1f} CPU min, {step} steps, training loss {mean:.4f}", flush=True)
            torch.save(average.module.state_dict(), folder / f"{name}-{round(due.pop(0) * 6)}.pt")
            losses = []
            continue
        if len(order) < entry.batch:
            order = torch.randperm(len(x), generator=generator)
        chosen, order = order[: entry.batch], order[entry.batch :]
        for group in optimizer.param_groups:
            group["lr"] = entry.rate * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * min(elapsed, 1))) / 2
        loss = entry.loss(values.enter(values.noisy(x[chosen], generator)))
        loss.backward()
        nn.utils.clip_grad_norm_(entry.module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(entry.module)
        losses.append(loss.detach())
        step += 1


def bits(log_prob: Callable[[Tensor], Tensor], values: Values, x: Tensor) -> Tensor:
    """Bits per dimension of each image, one dequantisation by a fixed seed; 50 images at a time."""
    found = []
    for y in values.noisy(x.double(), torch.Generator().manual_seed(7)).split(50):
        with torch.no_grad():
            nats = log_prob(values.enter(y).float()).double() + values.log_det(y)
        found.append(bits_per_dimension(nats, values.data))
    return torch.cat(found)


def said(value: Tensor) -> str:
    """The mean and its standard error."""
    return f"{float(value.mean()):.3f} +- {float(value.std()) / math.sqrt(len(value)):.3f}"


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["unet", "glow"])
    parser.add_argument("--seconds", type=float, default=1800, help="CPU seconds of training for each model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--curve", type=int, default=100, help="validation images at each point of the curve")
    parser.add_argument("--out", type=Path, help="where weights are kept and found")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        values = Values.of(RECIPE)
    except InputError as error:
        print(f"{error} Skipped.")
        return
    train_x, test_x = (values.source.load(split).x for split in ("train", "test"))
    for name in options.models:
        torch.manual_seed(0)
        try:
            entry = MODELS[name]()
        except ModuleNotFoundError as error:
            print(f"{name}: {error}; skipped")
            continue
        size = sum(p.numel() for p in entry.module.parameters())
        print(f"{name}: {size / 1e6:.2f} M parameters", flush=True)
        if not (folder / f"{name}-6.pt").exists():
            train(name, entry, values, train_x[:-VALIDATION], options.seconds, folder)
        entry.module.eval()
        start = time.process_time()
        for share in reversed(THIRDS):
            entry.module.load_state_dict(torch.load(folder / f"{name}-{round(share * 6)}.pt"))
            if share == 1:
                found = bits(entry.log_prob, values, test_x[: options.images])
                print(f"{name}: test {said(found)} bits per dimension, {len(found)} images", flush=True)
            curve = bits(entry.log_prob, values, train_x[-VALIDATION:][: options.curve])
            print(f"{name}: {share * options.seconds / 60:5.1f} CPU min: validation {said(curve)}", flush=True)
        if name == "unet":
            entry.module.load_state_dict(torch.load(folder / f"{name}-6.pt"))
            errors(entry, values, test_x)
        print(f"{name}: evaluations took {(time.process_time() - start) / 60:.1f} CPU min", flush=True)


def errors(entry: Entry, values: Values, x: Tensor) -> None:
    """Of the solver's tolerance on 50 images, and of the probe on a few."""
    solved = entry.log_prob
    loose = bits(solved, values, x[:50])
    tight = bits(lambda z: solved(z, rtol=1e-4), values, x[:50])  # type: ignore[call-arg]
    exact = bits(lambda z: solved(z, divergence="exact"), values, x[:EXACT])  # type: ignore[call-arg]
    print(f"unet: bits at a tenth of the tolerance less those at it {said(tight - loose)}, 50 images", flush=True)
    print(f"unet: bits by the probe less those by the exact trace {said(loose[:EXACT] - exact)}, {EXACT} images")


if __name__ == "__main__":
    main()
