"""Every detector of the kit for attention fires on a backend that is broken in one way, and says what is wrong."""

from __future__ import annotations

import pytest
import torch

from itoflow import Attention
from itoflow.testing import attentions
from itoflow.testing.variants import variant


class Formula(Attention):
    """Equation 1 of Vaswani et al., right as it stands."""

    def supports(self, call):
        return ()

    def __call__(self, q, k, v, *, bias=None, dropout=0.0, scale=None):
        logits = (q @ k.mT).double() * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits = logits if bias is None else logits + bias
        nothing = (logits == -torch.inf).all(-1, keepdim=True)
        weights = logits.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
        return (torch.dropout(weights, dropout, True) @ v.double()).to(q.dtype)


def broken(**members):
    """A `Formula` with some members replaced."""
    return variant(Formula, **members)


def attending(**changed):
    """`Formula` called with some arguments replaced."""

    def call(self, q, k, v, *, bias=None, dropout=0.0, scale=None):
        given = {"q": q, "k": k, "v": v, "bias": bias, "dropout": dropout, "scale": scale}
        return Formula()(**{name: changed[name](value) if name in changed else value for name, value in given.items()})

    return broken(__call__=call)


def mean_of_v(self, q, k, v, *, bias=None, dropout=0.0, scale=None):
    return v.mean(2, keepdim=True).expand(*q.shape[:3], v.shape[3])


def zeroed(self, q, k, v, *, bias=None, dropout=0.0, scale=None):
    with torch.no_grad():
        q.mul_(0)
    return Formula()(q, k, v, bias=bias, dropout=dropout, scale=scale)


class Once(torch.autograd.Function):
    """x, differentiable once and in reverse mode."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, y):
        return y


def differentiable_once(self, q, k, v, *, bias=None, dropout=0.0, scale=None):
    return Once.apply(Formula()(q, k, v, bias=bias, dropout=dropout, scale=scale))


ATTENTIONS = [
    ("check_output", broken(__call__=mean_of_v), "output"),
    ("check_output", broken(__call__=zeroed), "in place"),
    ("check_output", broken(__call__=lambda self, q, k, v, **_: (q, k)), "must return a tensor"),
    ("check_output", broken(__call__=lambda self, q, k, v, **_: v.float()), "returned torch.float32"),
    ("check_output", broken(supports=lambda self, call: None), "a tuple of reasons"),
    ("check_output", attending(bias=lambda bias: None), "output"),
    ("check_output", attending(scale=lambda scale: None), "output"),
    ("check_gradient", attending(k=lambda k: k.detach() + (k - k.detach()) / 2), "gradient in k"),
    ("check_gradient", attending(bias=lambda bias: bias if bias is None else bias.detach()), "in the bias"),
    (
        "check_gradient",
        attending(q=torch.Tensor.detach, k=torch.Tensor.detach, v=torch.Tensor.detach),
        "no gradient",
    ),
    ("check_dropout", attending(dropout=lambda p: 0.0), "keeps 1.0000 of the weights"),
    ("check_dropout", attending(v=lambda v: v / 2), "A weight that"),
    ("check_second_order", broken(__call__=differentiable_once), "no forward-mode or no second"),
    ("check_second_order", attending(q=lambda q: q.detach() + (q - q.detach()) / 2), "Hessian"),
]


ONCE = broken(__call__=differentiable_once, supports=lambda self, call: ("first order only",) * call.second_order)


@pytest.mark.parametrize("backend", [Formula(), ONCE], ids=["twice", "once"])
@pytest.mark.parametrize("check", attentions.CHECKS[1:])
def test_attention_that_is_right_passes(backend, check):
    check(backend)


@pytest.mark.parametrize(("check", "backend", "says"), ATTENTIONS)
def test_attention_detector_fires(check, backend, says):
    with pytest.raises(AssertionError, match=says):
        getattr(attentions, check)(backend)


def test_every_attention_check_has_a_case_that_fires():
    assert {check for check, _, _ in ATTENTIONS} == {c.__name__ for c in attentions.CHECKS} - {"check_options"}
