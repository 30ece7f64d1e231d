"""What reads or transforms the steps of a network, and what it does to the tensors that the network sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def into_graph() -> bool:
    """Inside what reads steps one by one: torch.compile, torch.export, torch.jit, torch.fx, fake tensors, counters."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_compiling() or traced or is_in_torch_dispatch_mode()


def under_func() -> bool:
    """Inside a transform of torch.func. False where torch.compile reads the code.

    Under vmap a tensor cannot be asked how it lies in memory, and our `torch.autograd.Function`s have no rule for it.
    """
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def holds(condition: Tensor) -> bool:
    """Whether a condition is true everywhere; vmap hides its values, and then it counts as true."""
    try:
        return bool(condition.all())
    except RuntimeError:
        if under_func():
            return True
        raise
