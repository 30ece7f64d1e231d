"""The one loop that runs every table (see `itoflow.table`), with as little beside the network as there can be.

`itoflow.folding` says what equations (1) and (2) are, once for each table and kind of field. The history H has as many
slots as outputs are needed at once (`itoflow.slots`), k for a method of k steps, and the noise that enters an input is
drawn into the slot that the output is about to fill. So a run holds the state, the network's input and output, and
the history: k + 3 tensors of the sample's size at most, made once, and k + 2 where the input is the state itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from itoflow.brownian import Noise
from itoflow.compiled import Weighed, compiled_step, weighed
from itoflow.errors import InputError, NumericalError, SpecError, UndefinedError
from itoflow.field import Evaluate, Field, Solved
from itoflow.folding import Folded, folded
from itoflow.noise import Generators, restore, states
from itoflow.prediction import GaussianPrediction
from itoflow.process import ALPHA_ZERO, GaussianProcess
from itoflow.table import Row, Table


@dataclass(frozen=True)
class Step:
    """What a callback sees after each network call.

    Arguments:
        index: of the call, from 0, of `calls` in all (None where a sampler cannot know).
        t: time of the call.
        x: the carried state after the call, (B, *S), data units.
        estimate: gives the current estimate of x0; see `x0`.
    """

    index: int
    calls: int | None
    t: float
    x: Tensor
    estimate: Callable[[], Tensor]

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t] at the network's input of this call, (B, *S); asked for while the callback runs.

        Raises:
            UndefinedError: the process is not Gaussian, or the call gave eps where alpha = 0.
        """
        return self.estimate()


Callback = Callable[[Step], None]


def check_callback(callback: Callback | None) -> None:
    """Refuse what cannot be called with one argument.

    Raises:
        InputError: says what a callback is.
    """
    if callback is not None and not _takes_one(callback):
        raise InputError(
            f"callback is a function of one `itoflow.loop.Step`, called after every network call. Given: {callback!r}. "
            "To keep states: itoflow.callbacks.Trajectory()."
        )


def _takes_one(callback: Callback) -> bool:
    try:
        inspect.signature(callback).bind(None)
    except TypeError:
        return False
    except ValueError:  # written in C, it does not say
        return True
    return True


@torch.no_grad()
def run_table(
    table: Table,
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    *,
    generator: Generators = None,
    callback: Callback | None = None,
    name: str = "table",
    compile: bool = False,
) -> Tensor:
    """Run every row, from u = x (B, *S).

    Arguments:
        name: of the sampler, for errors.
        compile: by `itoflow.compiled.step`, compiled; a field that solves nothing ahead runs as it is.

    Raises:
        InputError: field, x or callback is not what it should be.
        NumericalError: the result is not finite. The run is repeated, with the noise wound back, to find the step. A
            run that a CUDA graph captures is not checked.
        SpecError: the network changes its input in place.
    """
    check_call(field, x, callback)
    compiled = compile and field.solved_by(x) is not None
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return _run(table, field, x, cond, generator, callback, compiled)
    start = states(generator, x)
    u = _run(table, field, x, cond, generator, callback, compiled)
    if not bool(torch.isfinite(u).all()):
        restore(generator, x, start)
        _run(table, field, x, cond, generator, None, locate=name)
        raise NumericalError(f"Sampler {name} ended with values that are not finite; a second run did not.")
    return u


def check_call(field: Field, x: Tensor, callback: Callback | None) -> None:
    """Refuse what a sampler cannot be called with.

    Raises:
        InputError: says what field, x and callback are.
    """
    if not isinstance(field, Field):
        raise InputError(f"A sampler runs on a Field, of a model `model.field`. Given: {type(field).__name__}.")
    needed = "A sampler starts from a floating tensor (B, *S), x at t_max. Given: "
    if not isinstance(x, Tensor):
        raise InputError(f"{needed}{type(x).__name__}.")
    if not x.ndim or not x.is_floating_point():
        raise InputError(f"{needed}{x.dtype} of shape {tuple(x.shape)}.")
    check_callback(callback)


def _run(
    table: Table,
    field: Field,
    x: Tensor,
    cond: Mapping[str, Tensor] | None,
    generator: Generators,
    callback: Callback | None,
    compiled: bool = False,
    locate: str | None = None,
) -> Tensor:
    fold = weighed(table, field, x) if compiled else folded(table, field, x)
    network, noise = field.evaluator(x, cond), Noise(generator, [row.clock for row in table.rows], like=x)
    show: Show | None = None if callback is None else _Show(callback, table.rows, fold.solved, field)
    if locate is not None:
        show = _Locate(locate, table.rows)
    if isinstance(fold, Weighed):
        return _run_compiled(fold, network, x, noise, show)
    u = x.clone(memory_format=torch.contiguous_format)
    if fold.slots:
        return _run_with_history(fold, network, u, noise, show)
    return _run_without_history(fold, network, u, noise, show)


def _run_without_history(fold: Folded, network: Evaluate, u: Tensor, noise: Noise, show: Show | None) -> Tensor:
    """Equation (1); u holds u / s."""
    used = torch.empty_like(u)
    z = torch.empty_like(u) if any(step.r for step in fold.steps) else used
    s = 1.0
    for i, (label, (p, apart, r, keep, b, c, s)) in enumerate(zip(fold.solved.labels, fold.steps, strict=True)):
        if show is not None:  # then no tensor is used twice, so that a step stays as it was
            used, z = torch.empty_like(u), torch.empty_like(u)
        v = torch.mul(u, p, out=used) if apart or show is not None else u
        if r:
            v.add_(noise.draw(i, z), alpha=r)
        y = network(v, label) if i else _first(network, v, label)
        if keep == 1:
            u.add_(y, alpha=b)
        elif keep == 0:  # not 0 u + b y: u may be larger than 1 / rounding
            torch.mul(y, b, out=u)
        else:
            u = (u * keep).add_(y, alpha=b)  # y may be u itself
        if show is None:
            y = v  # frees the output, for the next one or for what a path needs
        if c:
            u.add_(z if r else noise.draw(i, z), alpha=c)
        if show is not None:
            show(i, u * s, v, y)
            del y
    return u if s == 1 else u.mul_(s)


def _run_with_history(fold: Folded, network: Evaluate, u: Tensor, noise: Noise, show: Show | None) -> Tensor:
    """Equation (2); one more row of the matrix, where it is needed, is for v until the call is made, and then for z."""
    more = any(step.apart or step.q is not None or step.c for step in fold.steps)
    rows = torch.zeros(fold.slots + more, u.numel(), dtype=u.dtype, device=u.device)
    slots, flat, history, all_rows = [row.view(u.shape) for row in rows], u.view(-1), rows[: fold.slots].t(), rows.t()
    used = z = slots[-1]
    flat_used = rows[-1]
    if fold.scales[0] != 1:
        u.mul_(fold.scales[0])
    for i, (label, step) in enumerate(zip(fold.solved.labels, fold.steps, strict=True)):
        place, p, p_tensor, apart, q, r, early, a, forget, b, c, by_v, by_y = step
        slot = slots[place]
        if show is not None:
            used = torch.empty_like(u)
            flat_used = used.view(-1)
        if q is not None:
            if r:
                noise.draw(i, slot)
            torch.addmv(flat, history, q, beta=p, out=flat_used)
            v = used
            if forget:
                torch.mul(slot, early, out=u)
            elif early:
                u.add_(slot, alpha=early)
        else:
            v = torch.mul(u, p_tensor, out=used) if apart or show is not None else u
        y = network(v, label) if i else _first(network, v, label)
        if by_v == 0:
            slot.copy_(y)
        elif by_y == 1:
            torch.add(y, v, alpha=by_v, out=slot)
        else:
            torch.add(v, y, alpha=by_y, out=slot)
        if show is None:
            y = v
        if c:
            noise.draw(i, z)
            flat.addmv_(all_rows, b, beta=a)
        elif b is not None:
            flat.addmv_(history, b, beta=a)
        elif a != 1:
            u.mul_(a)
        if show is not None:
            show(i, u / fold.scales[i + 1], v, y)
            del y
    return u


def _run_compiled(steps: Weighed, network: Evaluate, x: Tensor, noise: Noise, show: Show | None) -> Tensor:
    """Equation (2) by `itoflow.compiled.step`."""
    advance = compiled_step()
    u, slots = x.contiguous(), [torch.zeros_like(x) for _ in steps.orders[0]]
    z = torch.zeros_like(u) if any(steps.noisy) else None
    each = zip(steps.solved.labels, steps.weights, steps.noisy, steps.orders, strict=True)
    for i, (label, weights, noisy, order) in enumerate(each):
        if noisy and z is not None:
            noise.draw(i, z)
        u, slots[order[-1]], v, y = advance(network, u, tuple(slots[j] for j in order), z, label, weights)
        if show is not None:
            show(i, u, v, y)
    return u


def _first(network: Evaluate, x: Tensor, label: Any) -> Tensor:
    """The first call of a run, checked: what it is given is used again, the times in the next run too.

    An error of the network's gets a note of what it was called with, as its shape is what the run was started from.

    Raises:
        SpecError: the network changed x or t in place.
    """
    given = {"x": x, "t": label} if isinstance(label, Tensor) else {"x": x}
    before = {name: value._version for name, value in given.items() if not value.is_inference()}
    try:
        y = network(x, label)
    except Exception as error:
        error.add_note(f"In the first call of a sampler's run, x of shape {tuple(x.shape)}, {x.dtype}, {x.device}.")
        raise
    changed = [name for name, version in before.items() if given[name]._version != version]
    if changed:
        raise SpecError(
            f"The network changes its input {' and '.join(changed)} in place (an operation with inplace=True, or whose "
            "name ends in _). Let its first operation make a new tensor, e.g. x = x * 2 instead of x *= 2."
        )
    return y


Show = Callable[[int, Tensor, Tensor, Tensor], None]
"""After call i: the state x, the network's input v as it took it, and its output y."""


class _Show:
    """Calls a callback."""

    def __init__(self, callback: Callback, rows: Sequence[Row], solved: Solved, field: Field) -> None:
        self.callback, self.rows, self.solved, self.field = callback, rows, solved, field

    def __call__(self, i: int, x: Tensor, v: Tensor, y: Tensor) -> None:
        """See `Show`."""
        row, solved = self.rows[i], self.solved

        def estimate() -> Tensor:
            unscaled = v / solved.scale[i]
            return x0_estimate(self.field, row, unscaled, torch.add(y * solved.m_y[i], unscaled, alpha=solved.m_x[i]))

        self.callback(Step(i, len(self.rows), row.t, x, estimate))


def x0_estimate(field: Field, row: Row, v: Tensor, h: Tensor) -> Tensor:
    """x0 from the network's input v and what it gave for a row, without another call: (B, *S).

    Raises:
        UndefinedError: the process is not Gaussian, or the row gives eps where alpha = 0.
    """
    if row.out == "x0":
        return h
    if not isinstance(field.process, GaussianProcess):
        raise UndefinedError(f"{type(field.process).__name__} is not Gaussian, so the velocity determines no x0.")
    k = field.process.kernel(row.t)
    if row.out == "eps":
        if float(k.alpha) <= ALPHA_ZERO:
            raise UndefinedError(f"At t = {row.t:g} no signal is left (alpha = 0), so eps determines no x0.")
        a, b = torch.zeros_like(k.alpha), torch.ones_like(k.alpha)
    else:
        langevin = row.eta**2 / (2 * k.sigma) if row.eta else torch.zeros_like(k.sigma)
        a, b = k.d_alpha, k.d_sigma + langevin
    return GaussianPrediction(v, h, k, a, b).x0


class _Locate:
    """Raises at the first value that is not finite."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self.name, self.rows = name, rows

    def __call__(self, i: int, x: Tensor, v: Tensor, y: Tensor) -> None:
        """See `Show`."""
        found = {"the network's input": v, "the network's output": y, "the state after it, too large for its dtype": x}
        for what, value in found.items():
            if not bool(torch.isfinite(value).all()):
                raise NumericalError(
                    f"Sampler {self.name} got values that are not finite at step {i + 1} of {len(self.rows)} (steps of "
                    f"one network evaluation), t = {self.rows[i].t:.6g}: {what}."
                )
