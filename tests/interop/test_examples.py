"""The examples of other people's loops run, and what they train improves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_plain_loop() -> None:
    losses = load("plain_loop").main()
    assert losses[-1] < 0.5 * losses[0]


def test_custom_objective() -> None:
    losses = load("custom_objective").main()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.filterwarnings("default")  # of the packages' own
def test_hf_trainer() -> None:
    pytest.importorskip("accelerate")
    history = load("hf_trainer").main().state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert any("hidden/2<-4" in entry for entry in history)
    assert history[-1]["eval_loss"] < losses[0]


@pytest.mark.filterwarnings("default")
def test_lightning_module() -> None:
    pytest.importorskip("lightning")
    metrics = load("lightning_module").main().callback_metrics
    assert metrics["accuracy"] > 0.9


@pytest.mark.filterwarnings("default")
def test_accelerate_loop() -> None:
    pytest.importorskip("accelerate")
    losses = load("accelerate_loop").main()
    assert losses[-1] < 0.7 * losses[0]
