"""What torch.func does to the tensors that a network sees."""

from __future__ import annotations

import torch


def under_func() -> bool:
    """Inside a transform of torch.func, e.g. vmap: a tensor may not say how it lies in memory, nor be written to.

    Nor has a `torch.autograd.Function` a rule for vmap of itself. False where torch.compile reads the code.
    """
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
