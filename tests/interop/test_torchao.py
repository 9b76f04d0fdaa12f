"""What is refused before torchao is asked for anything; with it, see `tests/peers`."""

from __future__ import annotations

import sys

import pytest
import torch

from fkd.interop.torchao import fp8, quantized


def test_hardware_without_fp8_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher is on cpu; 8-bit floating-point products need"):
        fp8(torch.nn.Linear(32, 32))


def test_torchao_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install fkd\[torchao\]"):
        quantized(torch.nn.Linear(32, 32), None)
