"""Activation checkpointing: the backward pass runs the forward again, with the same tensors."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from fkd import Objective, batch, frozen, student, teacher, term, trainable
from fkd.loops import train_step
from fkd.losses import attention_kl, cross_entropy, mse

AOT = {"backend": "aot_eager"}


def llama(layers: int = 2, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, vocab_size=40)
    config = LlamaConfig(**sizes, num_hidden_layers=layers, intermediate_size=48, **options)
    return LlamaForCausalLM(config).train()


def data(seed: int = 0) -> dict[str, Any]:
    ids = torch.randint(40, (2, 8), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "targets": ids.roll(-1, 1)}


def objective(model: nn.Module, *, inner: bool = False, outer: bool = False) -> Objective:
    terms: dict[str, Any] = {"ce": term(cross_entropy, student.logits, batch.targets)}
    models: dict[str, Any] = {"student": trainable(model)}
    if outer:
        terms["hidden"] = term(mse, student.hidden_states[1], teacher.hidden_states[1])
    if inner:
        terms["map"] = term(attention_kl, student.attention(0), teacher.attention(0))
        mlp = "model.layers.1.mlp"
        terms["tap"] = term(mse, student.tap(mlp), teacher.tap(mlp))
    if inner or outer:
        torch.manual_seed(3)
        models["teacher"] = frozen(LlamaForCausalLM(model.config))
    return Objective(terms, **models)


def checkpointed(model: Any, **options: Any) -> Any:
    model.activation_checkpointing_enable(options or None)
    return model


def trained(chosen: Objective, steps: int = 3, **options: Any) -> list[torch.Tensor]:
    """Losses and norms of gradients while the parameters move away from the module's."""
    step = train_step(chosen, lambda p: torch.optim.SGD(p, lr=0.5), **options)
    state, found = step.init(), []
    for i in range(steps):
        state, metrics = step(state, data(i))
        found += [metrics["loss/total"], metrics["grad_norm/total"]]
    return found


@pytest.mark.parametrize("kind", [{}, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("what", [{}, {"outer": True}, {"inner": True, "outer": True}])
def test_a_step_is_the_same_with_and_without(kind, what):
    expected = trained(objective(llama(attention_dropout=0.2), **what), compile=False)
    model = checkpointed(llama(attention_dropout=0.2), **kind)
    found = trained(objective(model, **what), compile=False)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.compile
@pytest.mark.parametrize("what", [{}, {"inner": True, "outer": True}])
def test_a_compiled_step_is_the_same_with_and_without(what):
    expected = trained(objective(llama(attention_dropout=0.2), **what), compile=AOT)
    model = checkpointed(llama(attention_dropout=0.2), use_reentrant=True)
    found = trained(objective(model, **what), compile=AOT)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_a_compiled_step_recomputes():
    """The matrix products of the layers are in the graph three times for two, of those that a
    backward pass reads again."""
    counts: dict[bool, int] = {}

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        del inputs
        counts[on] = sum("mm" in str(node.target) for node in graph.graph.nodes)
        return graph.forward

    for on in (False, True):
        model = checkpointed(llama(8)) if on else llama(8)
        trained(objective(model), steps=1, compile={"backend": aot_autograd(fw_compiler=count)})
    assert counts[True] >= counts[False] + 8 * 4  # query, key, value, output, gate, up


class Recomputing(nn.Module):
    """Calls torch's checkpointing in its own code, around dropout and batch statistics."""

    def __init__(self, *, on: bool = True, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.on, self.first = on, nn.Linear(6, 8)
        self.block = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 8)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        run = self.block
        return self.head(checkpoint(run, x, use_reentrant=False) if self.on else run(x))


def images(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 6, generator=generator)
    return {"x": x, "y": torch.randint(3, (16,), generator=generator)}


def plain(model: nn.Module) -> Objective:
    return Objective({"ce": term(cross_entropy, student.logits, batch.y)}, student=trainable(model))


def test_a_module_that_checkpoints_in_its_own_code_trains_as_one_that_does_not():
    states = []
    for on in (False, True):
        step = train_step(
            plain(Recomputing(on=on)), lambda p: torch.optim.SGD(p, lr=0.5), compile=False
        )
        state = step.init()
        for i in range(3):
            state, _ = step(state, images(i))
        states.append({**state.trainable["student"], **state.buffers["student"]})
    torch.testing.assert_close(states[1], states[0], rtol=1e-6, atol=1e-6)


def moved(chosen: Objective, seed: int) -> Any:
    """Parts whose parameters are not the module's own."""
    torch.manual_seed(seed)
    parts = chosen.init()
    tensors = parts.trainable["student"]
    leaves = {n: (p + torch.randn_like(p)).requires_grad_() for n, p in tensors.items()}
    return parts._replace(trainable={"student": leaves})


def test_several_calls_can_wait_for_their_backward_passes():
    chosen = {on: plain(Recomputing(on=on, dropout=0.0)) for on in (False, True)}
    grads = {}
    for on, made in chosen.items():
        parts = [moved(made, seed) for seed in range(3)]
        losses = [made(p, images(i))[0] for i, p in enumerate(parts)]
        order = (1, 2, 0)
        leaves = [list(parts[i].trainable["student"].values()) for i in order]
        grads[on] = [torch.autograd.grad(losses[i], x) for i, x in zip(order, leaves, strict=True)]
    torch.testing.assert_close(grads[True], grads[False])


def test_skeletons_are_used_again_when_a_graph_is_freed():
    chosen = plain(Recomputing())
    parts = moved(chosen, 0)
    applied = chosen.program.applies["student"]
    for i in range(5):
        loss, aux = chosen(parts, images(i))
        loss.backward()
        assert not applied._idle
        del loss, aux
        gc.collect()
        assert len(applied._idle) == 1
    own = applied._idle[0].module.state_dict(keep_vars=True)
    assert not {id(p) for p in parts.trainable["student"].values()} & {id(p) for p in own.values()}


def test_without_a_graph_they_are_free_at_once():
    chosen = plain(Recomputing())
    with torch.no_grad():
        kept = [chosen(chosen.init(), images(i)) for i in range(3)]
    assert len(kept) == 3 and len(chosen.program.applies["student"]._idle) == 1
