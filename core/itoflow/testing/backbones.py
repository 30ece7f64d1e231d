r"""What every backbone is held to: net(x, t, cond) -> (B, *S), each row from its own inputs alone.

A check builds the network for vectors, sequences, small and larger images, without and with conditions, and uses those
that the backbone accepts. Networks often start at y = 0, so weights are given small random values first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from itoflow.attention import second_order
from itoflow.backbone import Backbone, DataSpec
from itoflow.errors import IncompatibleError
from itoflow.testing.assertions import (
    check_options,
    expect,
    expect_close,
    expect_finite,
    expect_tensor,
    global_randomness_untouched,
)
from itoflow.testing.problems import seeded

_SHAPES = ((2,), (2, 16), (1, 8, 8), (3, 16, 16))

ROUNDING = 0.04
"""Error that bfloat16 may cause under autocast, as root mean square over that of the output: 10 of its roundings."""


def check_output(backbone: Backbone) -> None:
    """The output has x's shape and dtype and is finite, for batches of 1 and of 3, in float32 and float64."""
    name = type(backbone).__name__
    for data, net in _networks(backbone):
        for dtype in (torch.float32, torch.float64):
            net.to(dtype)
            for n in (1, 3):
                x, t, cond = _inputs(data, n, dtype)
                y = net(x, t, cond)
                expect_tensor(y, name)
                expect(
                    y.shape == x.shape and y.dtype == dtype,
                    f"{name} returned {y.dtype} of shape {tuple(y.shape)} for x {dtype} of shape {tuple(x.shape)}.",
                )
                expect_finite(y, f"The output of {name} on {data!r}")


def check_independence(backbone: Backbone) -> None:
    """In evaluation mode, a row depends on its own x, t and conditions only, and the network draws no randomness."""
    name = type(backbone).__name__
    for data, net in _networks(backbone):
        net.to(torch.float64).eval()
        x, t, cond = _inputs(data, 4, torch.float64)
        with global_randomness_untouched(f"{name} in evaluation mode"):
            together = net(x, t, cond)
        alone = torch.cat(
            [net(x[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()}) for i in range(4)]
        )
        expect_close(
            alone, together, 1e-8 * (1 + together.abs()), f"{name} on a row alone, against the row in its batch,"
        )


def check_inputs_used(backbone: Backbone) -> None:
    """The output changes with x, with t, and with every condition that the data have."""
    name = type(backbone).__name__
    for data, net in _networks(backbone):
        net.to(torch.float64).eval()
        x, t, cond = _inputs(data, 3, torch.float64)
        y = net(x, t, cond)
        variants = {"x": (x + 0.5, t, cond), "t": (x, 1 - t, cond)}
        if "class" in cond:
            variants["cond['class']"] = (x, t, {**cond, "class": (cond["class"] + 1) % 3})
        if "vector" in cond:
            variants["cond['vector']"] = (x, t, {**cond, "vector": cond["vector"] + 1})
        for what, inputs in variants.items():
            changed = (net(*inputs) - y).abs().flatten(1).amax(1)
            expect(bool((changed > 1e-9).all()), f"{name} on {data!r} does not depend on {what}.")


def check_gradients(backbone: Backbone) -> None:
    """Every parameter gets a finite gradient that is not zero, and so does x."""
    name = type(backbone).__name__
    for data, net in _networks(backbone):
        net.to(torch.float64).train()
        x, t, cond = _inputs(data, 6, torch.float64)
        x.requires_grad_()
        net(x, t, cond).square().sum().backward()
        for what, weight in (("x", x), *net.named_parameters()):
            expect(weight.grad is not None, f"{name} on {data!r} does not use its parameter {what}.")
            assert weight.grad is not None
            expect_finite(weight.grad, f"The gradient of {name} in {what}")
            expect(bool((weight.grad != 0).any()), f"The gradient of {name} on {data!r} in {what} is zero.")


def check_state(backbone: Backbone) -> None:
    """The state dict carries all that the output depends on: a second network that loads it gives the same output."""
    for data, net in _networks(backbone):
        x, t, cond = _inputs(data, 3, torch.float32)
        other = backbone.build(data)
        other.load_state_dict(net.state_dict())
        net.eval(), other.eval()
        expect(
            torch.equal(net(x, t, cond), other(x, t, cond)),
            f"Two networks of {type(backbone).__name__} with one state dict differ: register what they depend on as "
            "parameters or buffers.",
        )


def check_device(backbone: Backbone) -> None:
    """The network runs where its inputs are, the device that holds no memory (`meta`): it makes no tensor elsewhere."""
    name = type(backbone).__name__
    for data, net in _networks(backbone):
        net.to("meta")
        x, t, cond = _inputs(data, 3, torch.float32)
        try:
            y = net(x.to("meta"), t.to("meta"), {key: value.to("meta") for key, value in cond.items()})
        except RuntimeError as error:
            raise AssertionError(
                f"{name} on {data!r} fails where weights and inputs are on one device that is not the CPU: {error}. "
                "Make tensors on x.device, register constants as buffers, and do not branch on values."
            ) from error
        expect(y.device.type == "meta", f"{name} returned a tensor on {y.device} for inputs on another device.")


def check_compile(backbone: Backbone) -> None:
    """torch.compile makes one graph of the network, which gives the same output."""
    name = type(backbone).__name__
    *_, (data, net) = _networks(backbone)
    net.eval()
    torch.compiler.reset()
    x, t, cond = _inputs(data, 3, torch.float32)
    try:
        y = torch.compile(net, backend="eager", fullgraph=True)(x, t, cond)
    except Exception as error:  # of many classes, most of them private to torch
        raise AssertionError(f"torch.compile breaks the graph of {name} on {data!r}: {error}") from error
    finally:
        torch.compiler.reset()
    expected = net(x, t, cond)
    expect_close(y, expected, 1e-5 * (1 + expected.abs()), f"{name} compiled, against {name} as it is,")


def check_autocast(backbone: Backbone) -> None:
    """Under autocast to bfloat16 the output is that of float32 but for rounding (see `ROUNDING`), gradients finite."""
    name = type(backbone).__name__
    for data, net in _networks(backbone):
        net.eval()
        x, t, cond = _inputs(data, 6, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x, t, cond)
            loss = y.float().square().sum()
        expected = net(x, t, cond).detach()
        error = (y.detach().float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        expect(
            float(error) <= ROUNDING,
            f"{name} on {data!r} under autocast to bfloat16 is {float(error):.2g} away from float32, relative; "
            f"{ROUNDING:g} is allowed. Keep sums, norms and time features in float32.",
        )
        loss.backward()
        for what, weight in net.named_parameters():
            if weight.grad is not None:
                expect_finite(weight.grad, f"The gradient of {name} in {what} under autocast")


def check_second_order(backbone: Backbone) -> None:
    """Under `second_order`, J v in forward mode and the gradient of |J^T u|^2 are those of finite differences."""
    name, h = type(backbone).__name__, 1e-4
    for data, net in _networks(backbone):
        net.to(torch.float64).eval()
        x, t, cond = _inputs(data, 2, torch.float64)
        u, v = (torch.randn(x.shape, dtype=x.dtype, generator=seeded(seed)) for seed in (3, 4))
        with second_order():
            try:
                tangent = torch.func.jvp(lambda z, net=net, t=t, cond=cond: net(z, t, cond), (x,), (v,))[1]
                (slope,) = torch.autograd.grad(_squared(net, leaf := x.clone().requires_grad_(), t, cond, u), leaf)
            except (RuntimeError, NotImplementedError) as error:
                raise AssertionError(
                    f"{name} on {data!r} has no forward-mode or no second derivative: {error}. Use operations that "
                    "torch can differentiate twice, and itoflow.attention for attention."
                ) from error
            ahead, behind = x + h * v, x - h * v
            expected = (net(ahead, t, cond) - net(behind, t, cond)) / (2 * h)
            change = (_squared(net, ahead, t, cond, u) - _squared(net, behind, t, cond, u)) / (2 * h)
        scale = expected.abs().amax()
        expect_close(tangent, expected, 1e-5 * scale, f"J v of {name} on {data!r} in forward mode")
        expect_close((slope * v).sum(), change, 1e-5 * float(slope.norm() * v.norm()), f"d|J^T u|^2 of {name} along v")


def _squared(net: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Tensor], u: Tensor) -> Tensor:
    """|J^T u|^2 at x, with a graph."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((u * net(x, t, cond)).sum(), x, create_graph=True)
    return gradient.square().sum()


def _networks(backbone: Backbone) -> Iterator[tuple[DataSpec, nn.Module]]:
    """Every data spec that the backbone accepts with its network, weights random."""
    found = False
    for shape in _SHAPES:
        for data in (DataSpec(shape=shape), DataSpec(shape=shape, classes=3, vector=2)):
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    net = backbone.build(data)
            except IncompatibleError:
                continue
            expect(
                isinstance(net, nn.Module), f"{type(backbone).__name__}.build gave {net!r}; it gives a torch.nn.Module."
            )
            found = True
            generator = seeded(1)
            with torch.no_grad():
                for weight in net.parameters():
                    weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
            yield data, net
    expect(found, f"{type(backbone).__name__} accepts none of the shapes {_SHAPES}.")


def _inputs(data: DataSpec, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator, cond = seeded(2), dict[str, Tensor]()
    x = torch.randn(n, *data.shape, dtype=dtype, generator=generator)
    if data.classes is not None:
        cond["class"] = torch.arange(n) % data.classes
    if data.vector is not None:
        cond["vector"] = torch.randn(n, data.vector, dtype=dtype, generator=generator)
    return x, torch.linspace(0.05, 0.9, n, dtype=dtype), cond


CHECKS = (
    check_options,
    check_output,
    check_device,
    check_independence,
    check_inputs_used,
    check_gradients,
    check_state,
    check_compile,
    check_autocast,
    check_second_order,
)
