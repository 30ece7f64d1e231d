"""Every detector of backbones fires on one that is broken in one way, and says what is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itoflow import (
    Backbone,
)
from itoflow.testing import backbones
from itoflow.testing.variants import variant


class Net(nn.Module):
    """y = tanh(A x) + all conditions, right as it stands."""

    def __init__(self, data):
        super().__init__()
        size = torch.Size(data.shape).numel()
        self.inner, self.time = nn.Linear(size, size), nn.Linear(1, size)
        self.label = nn.Embedding(data.classes, size) if data.classes else None
        self.vector = nn.Linear(data.vector, size) if data.vector else None

    def forward(self, x, t, cond):
        y = torch.tanh(self.inner(x.flatten(1))) + self.time(t[:, None])
        if self.label is not None:
            y = y + self.label(cond["class"]) + self.vector(cond["vector"])
        return y.view_as(x)


class Dense(backbones.Backbone):
    """Builds `Net`."""

    def build(self, data):
        return Net(data)


def net(**members):
    """A backbone whose network has some members replaced."""
    module = type("Changed", (Net,), members)
    return variant(Dense, build=lambda self, data: module(data))


class Hidden(Net):
    def __init__(self, data):
        super().__init__(data)
        self.secret = float(torch.rand(()))

    def forward(self, x, t, cond):
        return super().forward(x, t, cond) * self.secret


class Idle(Net):
    def __init__(self, data):
        super().__init__(data)
        self.unused = nn.Linear(2, 2)


def broken_graph(self, x, t, cond):
    torch._dynamo.graph_break()
    return Net.forward(self, x, t, cond)


def changed_by_compilation(self, x, t, cond):
    return Net.forward(self, x, t, cond) + torch.compiler.is_compiling()


def infinite_slope(h):
    """Zero, with a slope that is infinite where autocast makes bfloat16 of h."""
    return 0 * (h - h).sum().abs().sqrt() if h.dtype == torch.bfloat16 else 0


class Once(torch.autograd.Function):
    """x^2, differentiable once and in reverse mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, y):
        return 2 * ctx.saved_tensors[0] * y


class Flat(torch.autograd.Function):
    """x^3 whose backward pass forgets that it depends on x."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        (x,) = inputs
        ctx.save_for_backward(x.detach().clone())
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx, y):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * y

    @staticmethod
    def jvp(ctx, v):
        return 3 * ctx.saved_tensors[0] ** 2 * v


BACKBONES = [
    ("check_output", net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond)[:, :1]), "shape"),
    ("check_output", net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond).float()), "float32"),
    ("check_output", net(forward=lambda self, x, t, cond: (x, {})), "returned a tuple"),
    ("check_output", variant(Backbone, build=lambda self, data: None), "Variant.build gave None"),
    ("check_independence", net(forward=lambda self, x, t, cond: Net.forward(self, x - x.mean(0), t, cond)), "alone"),
    (
        "check_independence",
        net(forward=lambda self, x, t, cond: Net.forward(self, x + torch.randn_like(x), t, cond)),
        "default generator",
    ),
    ("check_inputs_used", net(forward=lambda self, x, t, cond: Net.forward(self, x, 0 * t, cond)), "depend on t"),
    (
        "check_inputs_used",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, {k: 0 * v for k, v in cond.items()})),
        "depend on cond",
    ),
    ("check_gradients", variant(Dense, build=lambda self, data: Idle(data)), "does not use its parameter unused"),
    ("check_state", variant(Dense, build=lambda self, data: Hidden(data)), "one state dict"),
    (
        "check_device",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) + torch.ones(x.shape)),
        "fails where weights and inputs are on one device",
    ),
    ("check_device", net(forward=lambda self, x, t, cond: torch.zeros(x.shape)), "returned a tensor on cpu"),
    ("check_compile", net(forward=broken_graph), "breaks the graph"),
    ("check_compile", net(forward=changed_by_compilation), "compiled, against"),
    (
        "check_autocast",
        net(forward=lambda self, x, t, cond: self.inner(x.flatten(1)).add(64).sub(64).view_as(x)),
        "away from float32",
    ),
    (
        "check_autocast",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) + infinite_slope(self.inner(x.flatten(1)))),
        "must be finite",
    ),
    ("check_second_order", net(forward=lambda self, x, t, cond: Once.apply(x)), "no second derivative"),
    (
        "check_second_order",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) * x.detach().square()),
        "forward mode",
    ),
    (
        "check_second_order",
        net(forward=lambda self, x, t, cond: Net.forward(self, x, t, cond) + Flat.apply(x)),
        "along v",
    ),
]


@pytest.mark.parametrize("check", [c for c in backbones.CHECKS if c.__name__ != "check_options"])
def test_backbone_that_is_right_passes(check):
    check(Dense())


@pytest.mark.parametrize(("check", "broken", "says"), BACKBONES)
def test_backbone_detector_fires(check, broken, says):
    with pytest.raises(AssertionError, match=says):
        getattr(backbones, check)(broken)


def test_every_backbone_check_has_a_case_that_fires():
    assert {check for check, _, _ in BACKBONES} == {c.__name__ for c in backbones.CHECKS} - {"check_options"}
