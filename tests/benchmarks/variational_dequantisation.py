r"""Variational dequantisation of digits beside uniform, both trained by the loop of this file on `digits-density`.

With u ~ q(u | x) in place of uniform noise, equation (3) of `itoflow.likelihood` becomes

    log P(x) >= E_q [ log p(x + w (u - 1/2)) - log q(u | x) ] + D log w,                                           (1)

tight where q is p's own law of u in the cell. Here u = Phi(w_K), w_0 ~ N(0, I), and w_{k+1} = m + s w_k on one colour
of a checkerboard, m and s being a small network of x and the other colour: q starts as the uniform law. The model p
learns by flow matching on the noise of q; q learns by (1), with p held fixed and -log p bounded, up to a constant, by

    1/2 int E |eps - eps_hat(alpha z + sigma eps)|^2 dlambda,   lambda = 2 log(alpha / sigma),                       (2)

one draw of lambda for each example. The figures are by the flow's exact change of variables, so (2) only guides q.

    python tests/benchmarks/variational_dequantisation.py [--steps 800]

On the validation part of `digits_density.py`, about six minutes on one core.

References:
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization (Ho et al., 2019),
    https://arxiv.org/abs/1902.00275, section 3.1.
    Variational Diffusion Models (Kingma et al., 2021), https://arxiv.org/abs/2107.00630, equation 17, for (2).
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from digits_density import Fold
from torch import Tensor, nn

from itoflow import GaussianProcess, GenerativeModel
from itoflow.likelihood import level_width
from itoflow_data.gaussianised import Gaussianised
from itoflow_train.ema import moving_average
from itoflow_train.evaluation import Evaluation, evaluate
from itoflow_train.loop import build, schedule
from itoflow_train.recipe import Recipe, read
from itoflow_train.values import Values

LARGEST = 8.0
"""|lambda| of (2); p is not asked about noise below a fiftieth of a standard deviation."""
WAIT = 200
"""Steps of uniform noise, in which p gets an idea of the data."""


class Noise(nn.Module):
    """q(u | x) for images of one channel and any even size."""

    def __init__(self, sides: tuple[int, int], width: int = 32, layers: int = 4) -> None:
        super().__init__()
        rows, columns = (torch.arange(side) for side in sides)
        colour = (rows[:, None] + columns) % 2
        self.register_buffer("masks", torch.stack([colour if k % 2 else 1 - colour for k in range(layers)]).float())
        self.nets = nn.ModuleList(self._net(width, sides) for _ in range(layers))

    @staticmethod
    def _net(width: int, sides: tuple[int, int]) -> nn.Module:
        last = nn.Conv2d(width, 2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        place = _Place(width, sides)
        return nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1), place, nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), last
        )

    def _affine(self, k: int, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """m and log s, zero where layer k changes nothing."""
        seen = self.masks[k]
        shift, scale = self.nets[k](torch.cat([x, (w * seen).to(x.dtype)], 1)).chunk(2, 1)
        return (shift * (1 - seen)).to(w.dtype), (scale.tanh() * (1 - seen)).to(w.dtype)

    def draw(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, 1, H, W), and log q (B,), of x, float32, and standard normals, float64."""
        w, grown = start, start.new_zeros(len(start))
        for k in range(len(self.nets)):
            shift, scale = self._affine(k, x, w)
            w, grown = shift + scale.exp() * w, grown + scale.flatten(1).sum(1)
        return torch.special.ndtr(w), _density(start, w, grown)

    def log_prob(self, x: Tensor, u: Tensor) -> Tensor:
        """log q (B,), by the inverse."""
        w = torch.special.ndtri(u)
        end, grown = w, w.new_zeros(len(w))
        for k in reversed(range(len(self.nets))):
            shift, scale = self._affine(k, x, w)
            w, grown = (w - shift) * (-scale).exp(), grown + scale.flatten(1).sum(1)
        return _density(w, end, grown)


class _Place(nn.Module):
    """A learned value for each channel and pixel."""

    def __init__(self, width: int, sides: tuple[int, int]) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.zeros(width, *sides))

    def forward(self, h: Tensor) -> Tensor:
        """h + P."""
        return h + self.map


def _density(start: Tensor, end: Tensor, grown: Tensor) -> Tensor:
    """log N(start) - log |d end / d start| - log phi(end): the constants cancel."""
    return (end.square() - start.square()).flatten(1).sum(1) / 2 - grown


class Variational(Values):
    """Values whose noise is q's; log q goes where log |det| goes."""

    noise: Noise | None = None

    def drawn(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """y, and log q, of x (B, 1, H, W)."""
        start = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        assert self.noise is not None
        u, log_q = self.noise.draw(x.float(), start)
        return x + level_width(self.data) * (u - 0.5), log_q

    def noisy(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """y of x."""
        if self.noise is None or generator is None:
            return super().noisy(x, generator)
        with torch.no_grad():
            return self.drawn(x, generator)[0]

    def log_det(self, y: Tensor) -> Tensor:
        """log |det dz/dy| - log q(u | x)."""
        found = super().log_det(y)
        if self.noise is None:
            return found
        width = level_width(self.data)
        k = (y - self.data.low) / width + 0.5
        level = k.floor()
        x = self.data.low + width * level
        with torch.no_grad():
            return found - self.noise.log_prob(x.float(), k - level)


def upper(model: GenerativeModel, z: Tensor, generator: torch.Generator) -> Tensor:
    """Equation (2) less its constant, (B,)."""
    process = model.process
    assert isinstance(process, GaussianProcess)
    place = (torch.arange(len(z)) + torch.rand(len(z), generator=generator, dtype=torch.float64)) / len(z)
    t = process.log_snr_inverse(LARGEST * (2 * place - 1))
    noisy = process.perturb(z, t, generator=generator)
    missed = noisy.eps - model.field(noisy.x, t, {}).eps
    return LARGEST * missed.flatten(1).square().sum(1)


def trained(recipe: Recipe, *, variational: bool) -> tuple[Evaluation, Evaluation, float]:
    """Figures on validation and train, and seconds of the processor."""
    options, values = recipe.training, Variational.of(recipe)
    model, generator = build(recipe), torch.Generator().manual_seed(options.seed)
    _, height, width = values.data.shape
    noise = Noise((height, width))
    examples, size = values.source.load("train"), values.data.shape[1] * values.data.shape[2]
    batches = examples.batches(options.batch_size, generator)
    optimizer = torch.optim.AdamW(model.parameters(), betas=options.betas, weight_decay=0.0)
    guided = torch.optim.Adam(noise.parameters(), betas=options.betas)
    average = moving_average(model.field, options.ema)
    start = time.process_time()
    for step in range(1, options.steps + 1):
        x = next(batches).x.double()
        for group in (*optimizer.param_groups, *guided.param_groups):
            group["lr"] = options.learning_rate * schedule(options, step)
        if variational and step > WAIT:
            values.noise = noise
            y, log_q = values.drawn(x, generator)
            z = values.enter(y)
            gain = Values.log_det(values, y) - upper(model, z, generator) - log_q
            guided.zero_grad()
            (-gain.mean() / size).backward()
            nn.utils.clip_grad_norm_(noise.parameters(), 1.0)
            guided.step()
        else:
            z = values.enter(values.noisy(x, generator))
        optimizer.zero_grad()
        model.loss(z.detach().float(), generator=generator).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.clip or 1.0)
        optimizer.step()
        average.update_parameters(model.field)
    seconds = time.process_time() - start
    if variational:  # the inverse, which the figures take log q from, is that of the draw
        y, log_q = values.drawn(x, generator)
        assert float((Values.log_det(values, y) - log_q - values.log_det(y)).detach().abs().max()) < 1e-3
    final = copy.deepcopy(model).eval()
    final.field.load_state_dict(average.module.state_dict())
    test, train = (
        evaluate(final, values, values.source.load(split)[:300], draws=2, check=1, divergence="hutchinson")
        for split in ("test", "train")
    )
    return test, train, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    recipe = read("digits-density", [f"training.steps={steps}"]).replace(data=Gaussianised(source=Fold()))
    print(f"{'dequantisation':<20}{'validation':>19}{'train':>19}{'seconds':>9}")
    for name in ("uniform", "variational"):
        test, train, seconds = trained(recipe, variational=name == "variational")
        cells = "".join(f"{e.bits.mean:>10.4f} +- {e.bits.error:.4f}" for e in (test, train))
        print(f"{name:<20}{cells}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
