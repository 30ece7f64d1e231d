"""`itoflow attention`: the table of reasons of this machine."""

from __future__ import annotations

import json

import pytest
import torch

from itoflow import InputError, cli


def test_typical_calls_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attention", "--device", "cpu"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["call", "on", "auto", "sdpa", "chunked", "math", "xformers"]
    chosen = {row.partition("  ")[0]: row.split("cpu")[1].split()[0] for row in rows[:10]}
    assert chosen["training"] == "sdpa"
    assert chosen["dropout 0.1"] == "chunked"
    assert chosen["inside second_order()"] == "math"
    assert sum(row.endswith("xformers needs a CUDA device; this call is on cpu") for row in rows) == 1


def test_one_call_described_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--batch 2 --heads 3 --length 5 --keys 7 --head-size 8 --value-size 4 --dtype bfloat16 --dropout 0.1"
    assert cli.main(["attention", "--json", "--device", "cpu", *options.split(), "--bias-gradient"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    call = answer["call"]
    assert (call["query"], call["key"], call["value"]) == ([2, 3, 5, 8], [2, 3, 7, 8], [2, 3, 7, 4])
    assert (call["dtype"], call["bias"], call["bias_gradient"]) == ("bfloat16", [1, 3, 5, 7], True)
    assert (answer["auto"], answer["reasons"]["chunked"], len(answer["reasons"]["sdpa"])) == ("chunked", [], 3)


def test_gradients_are_off_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attention", "--json", "--device", "cpu", "--bias-gradient", "--no-gradient"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["call"]["gradient"], answer["auto"]) == (False, "sdpa")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_a_device_that_is_not_here_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attention", "--device", "cuda"]) == 2
    assert "--device cuda cannot be used here" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--head-size", "0"], ["--dropout", "1"], ["--dtype", "int8"], ["--lenght", "3"]])
def test_wrong_options_are_errors(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attention", *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_errors_are_those_of_itoflow() -> None:
    from itoflow_attention.commands import attention

    with pytest.raises(InputError, match="This machine has"):
        attention(["--device", "nowhere"])


def test_a_zero_is_an_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attention", "--json", "--device", "cpu", "--dropout", "0"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
