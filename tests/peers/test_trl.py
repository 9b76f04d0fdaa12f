"""TRL's loss for GKD on the same batch: equal values, equal gradients, and the one difference."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch

import fkd
from fkd import batch, student, teacher, term
from fkd.loops.language import Tokens, token_batch
from fkd.losses import head, head_divergence, jsd, kl, reverse_kl

from ..loops.text.test_batches import llama

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from trl.experimental.gkd.gkd_trainer import GKDTrainer
    except Exception as error:  # it loads its parts late, and wraps what is missing
        pytest.skip(f"trl: {error}", allow_module_level=True)

generalized = GKDTrainer.generalized_jsd_loss


def chat(side: str) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 400, (n,), generator=g).tolist() for n in (9, 5, 12)]
    return token_batch([Tokens(ids, [-100] * 3 + ids[3:]) for ids in rows], length=14, side=side)


def value_and_gradient(loss, data, temperature):
    """Of fkd: the mean over what counts, and its gradient by the student's parameters."""
    objective = fkd.Objective(
        {
            "kd": term(
                loss,
                student.logits,
                teacher.logits,
                temperature=temperature,
                where=batch.targets != -100,
            )
        },
        student=fkd.trainable(llama(0), training=False),
        teacher=fkd.frozen(llama(1)),
    )
    parts = objective.init()
    leaves = [p.requires_grad_() for p in parts.trainable["student"].values()]
    value, _ = objective(parts, data)
    return value.detach(), torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("beta", "loss"), [(0, kl), (1, reverse_kl), (0.5, jsd), (0.1, None)])
def test_gkd(beta, loss, side, temperature):
    """TRL softens without T^2: fkd's value and gradient are T^2 times its own."""
    data = chat(side)
    loss = functools.partial(jsd, beta=beta) if loss is None else loss
    value, grads = value_and_gradient(loss, data, temperature)
    ours, theirs = llama(0), llama(1)
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {n: data[n] for n in names}
    with torch.no_grad():
        target = theirs(**inputs, use_cache=False).logits
    logits = ours(**inputs, use_cache=False).logits
    peer = temperature**2 * generalized(
        logits, target, labels=data["targets"], beta=beta, temperature=temperature
    )
    peer_grads = torch.autograd.grad(peer, list(ours.parameters()))
    torch.testing.assert_close(value, peer.detach(), rtol=1e-5, atol=1e-7)
    for a, b in zip(grads, peer_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize(
    ("beta", "divergence"),
    [(0.0, head.kl()), (1.0, head.reverse_kl()), (0.5, head.jsd(0.5)), (0.1, head.jsd(0.1))],
    ids=str,
)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_trainer(beta, divergence, temperature):
    """The chunked loss on hidden states, with scale and softcap: again without T^2."""
    trainer = pytest.importorskip("trl.trainer.distillation_trainer")
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 7, 6, generator=g), torch.randn(30, 6, generator=g)
    other, other_weight = torch.randn(2, 7, 8, generator=g), torch.randn(30, 8, generator=g)
    mask = torch.rand(2, 7, generator=g) > 0.3
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    peer = trainer._chunked_divergence_loss(
        hidden, other, weight, other_weight, mask.long(), beta, temperature=temperature,
        teacher_logit_scale=0.5, student_final_logit_softcapping=5.0,
    )[0]  # fmt: skip
    value = head_divergence(
        hidden, weight, other, other_weight, divergence=divergence, temperature=temperature,
        where=mask, teacher_logit_scale=0.5, student_softcap=5.0, strategy="chunked",
    ).value  # fmt: skip
    torch.testing.assert_close(value, temperature**2 * peer, rtol=1e-5, atol=1e-7)
    theirs = torch.autograd.grad(temperature**2 * peer, inputs)
    for a, b in zip(torch.autograd.grad(value, inputs), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
