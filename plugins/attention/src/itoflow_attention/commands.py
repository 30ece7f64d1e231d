"""The command `itoflow attention`: for calls that you describe, what each installed backend says on this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from itoflow import AttentionCall, InputError
from itoflow.attention import attention_reasons
from itoflow.parser import CommandParser

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def attention(argv: list[str]) -> int:
    """Print, for each call, what `auto` chooses and why the other backends do not take it."""
    given = _parser().parse_args(argv)
    options = {name: value for name, value in vars(given).items() if name not in ("json", "device", "debug")}
    asked = {name: value for name, value in options.items() if value is not None and value is not False}
    devices = [_device(given.device)] if given.device else _devices()
    described = [_described(asked, devices[0])] if asked else _typical(devices)
    answers = [(title, call, attention_reasons(call)) for title, call in described]
    if given.json:
        print(json.dumps([_data(*answer) for answer in answers], indent=2))
    else:
        print("\n".join(_table(answers)))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "attention",
        "Which attention backend serves which call on this machine, or why not.",
        epilog="Without options, typical calls on each device of this machine. Any option describes one call.",
    )
    count = _positive
    parser.add_argument("--batch", type=count, metavar="B", help="examples (default: 4)")
    parser.add_argument("--heads", type=count, metavar="H", help="heads (default: 4)")
    parser.add_argument("--length", type=count, metavar="N", help="queries (default: 1024)")
    parser.add_argument("--keys", type=count, metavar="M", help="keys and values (default: N)")
    parser.add_argument("--head-size", type=count, metavar="K", help="of queries and keys (default: 64)")
    parser.add_argument("--value-size", type=count, metavar="V", help="of values (default: K)")
    parser.add_argument("--dtype", choices=_DTYPES, help="default: float32")
    parser.add_argument("--device", help="e.g. cpu, cuda, cuda:1 (default: cuda where there is one, else cpu)")
    parser.add_argument("--bias", action="store_true", help="with an additive bias of shape (1, H, N, M)")
    parser.add_argument("--bias-gradient", action="store_true", help="with a bias that is learnt")
    parser.add_argument("--dropout", type=_probability, metavar="P", help="of attention weights, in [0, 1)")
    parser.add_argument("--no-gradient", action="store_true", help="under torch.no_grad, as when sampling")
    parser.add_argument("--second-order", action="store_true", help="inside itoflow.second_order()")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), not {value}")
    return value


def _devices() -> list[torch.device]:
    cuda = [torch.device("cuda")] if torch.cuda.is_available() else []
    return [*cuda, torch.device("cpu")]


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except Exception as error:
        reason = str(error).splitlines()[0].rstrip(".")
        known = ", ".join(str(device) for device in _devices())
        raise InputError(f"--device {name} cannot be used here: {reason}. This machine has: {known}.") from None


def _call(device: torch.device, **options: Any) -> AttentionCall:
    batch, heads, length, size = (options.get(n) or d for n, d in _SIZES.items())
    keys, value_size = options.get("keys") or length, options.get("value_size") or size
    learnt = bool(options.get("bias_gradient"))
    return AttentionCall(
        query=(batch, heads, length, size),
        key=(batch, heads, keys, size),
        value=(batch, heads, keys, value_size),
        dtype=getattr(torch, options.get("dtype") or "float32"),
        device=device,
        bias=(1, heads, length, keys) if learnt or options.get("bias") else None,
        dropout=options.get("dropout") or 0.0,
        second_order=bool(options.get("second_order")),
        gradient=not options.get("no_gradient"),
        bias_gradient=learnt and not options.get("no_gradient"),
    )


_SIZES = {"batch": 4, "heads": 4, "length": 1024, "head_size": 64}


def _described(options: dict[str, Any], device: torch.device) -> tuple[str, AttentionCall]:
    call = _call(device, **options)
    return f"q {call.query}, v {call.value}, {str(call.dtype).removeprefix('torch.')}", call


def _typical(devices: Iterable[torch.device]) -> list[tuple[str, AttentionCall]]:
    calls = []
    for device in devices:
        plain = _call(device)
        half = replace(plain, dtype=torch.bfloat16)
        calls += [
            ("training", plain),
            ("training in bfloat16", half),
            ("training in float64", replace(plain, dtype=torch.float64)),
            ("sampling in bfloat16", replace(half, gradient=False)),
            ("dropout 0.1", _call(device, dropout=0.1)),
            ("head size 40", _call(device, head_size=40)),
            ("value size 32", _call(device, value_size=32)),
            ("with a mask or bias", _call(device, bias=True)),
            ("with a learnt bias", _call(device, bias_gradient=True)),
            ("inside second_order()", replace(plain, second_order=True)),
        ]
    return calls


def _chosen(reasons: dict[str, tuple[str, ...]]) -> str | None:
    return next((name for name, why in reasons.items() if not why), None)


def _table(answers: list[tuple[str, AttentionCall, dict[str, tuple[str, ...]]]]) -> Iterable[str]:
    """A row for each call, a column for each backend, and each reason once, by its number."""
    notes: dict[str, int] = {}
    backends = list(answers[0][2])
    rows = [("call", "on", "auto", *backends)]
    for title, call, reasons in answers:
        cells = [
            "".join(f"[{notes.setdefault(why, len(notes) + 1)}]" for why in reasons[name]) or "yes" for name in backends
        ]
        rows.append((title, str(call.device), _chosen(reasons) or "none", *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield from ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    yield ""
    yield from (f"[{number}] {why}" for why, number in notes.items())


def _data(title: str, call: AttentionCall, reasons: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    described = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(call).items()}
    described |= {"dtype": str(call.dtype).removeprefix("torch."), "device": str(call.device)}
    return {
        "title": title,
        "call": described,
        "auto": _chosen(reasons),
        "reasons": {n: [*r] for n, r in reasons.items()},
    }
