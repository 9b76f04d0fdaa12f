"""A language model: a whole step with full-vocabulary KL, by logits and by head terms.

    python benchmarks/language_model.py
    python benchmarks/language_model.py --device cuda --bf16          # 1B-like and 8B-like shapes
    python benchmarks/language_model.py --tokens 64 --vocab 500       # a smoke run

Variants: fkd with the logits (`kl`) and with the head term (`head_divergence`, logits never
stored), compiled; a plain loop, eager and with the models compiled; TRL's own functions, without
their trainers, which need a data set: `GKDTrainer.generalized_jsd_loss` on the logits and the
chunked loss of `DistillationTrainer` on the hidden states; Liger's chunked JSD head on these;
torchdistill's `KDLoss` on the logits of the valid positions. All
with beta = 0, which is forward KL, at temperature 1, where none of their conventions differ (TRL
softens without T^2, Liger divides by the labels that count). The student is Llama-shaped with
random weights; every loss is the mean over valid tokens, and all losses and gradients are compared
with the plain loop's before anything is timed: to 1e-5 in float32.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _measure import COLUMNS, Run, arguments, compare, gemm_rate, needed_flops, same, table, write
from _steps import Loss, fkd_gradients, fkd_step, peer_gradients, peer_step
from torch import Tensor, nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import head, head_divergence, kl

SIZES = {
    # hidden, layers, heads, key-value heads, intermediate
    "cpu": ((128, 2, 4, 2, 384), (256, 4, 4, 2, 768)),
    "cuda": ((2048, 16, 32, 8, 8192), (4096, 32, 32, 8, 14336)),
}
DEFAULTS = {"cpu": {"tokens": 512, "vocab": 8000}, "cuda": {"tokens": 8192, "vocab": 128256}}


def llama(options: argparse.Namespace, size: tuple[int, ...]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(size[0])
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=size[0],
        num_hidden_layers=size[1],
        num_attention_heads=size[2],
        num_key_value_heads=size[3],
        intermediate_size=size[4],
        max_position_embeddings=options.length,
        tie_word_embeddings=False,
    )
    with torch.device(options.device):
        return LlamaForCausalLM(config)


def text(options: argparse.Namespace) -> dict[str, Tensor]:
    examples = max(1, options.tokens // options.length)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, options.vocab, (examples, options.length), generator=g)
    valid = torch.rand(examples, options.length, generator=g) > 0.2  # prompts do not count
    return {"input_ids": ids.to(options.device), "valid": valid.to(options.device)}


def objective(options: argparse.Namespace, pair: Any, way: str) -> fkd.Objective:
    if way == "logits":
        made = term(kl, student.logits, teacher.logits, where=batch.valid)
    else:
        made = term(
            head_divergence,
            student.hidden_states[-1],
            student.param("lm_head.weight"),
            teacher.hidden_states[-1],
            teacher.param("lm_head.weight"),
            divergence=head.kl(),
            where=batch.valid,
        )
    return fkd.Objective({"kd": made}, student=fkd.trainable(pair[0]), teacher=fkd.frozen(pair[1]))


def plain_loss(options: argparse.Namespace, data: dict[str, Tensor]) -> Loss:
    valid = data["valid"]

    def loss(small: nn.Module, big: nn.Module) -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                t = big(data["input_ids"], use_cache=False).logits
            s = small(data["input_ids"], use_cache=False).logits
        p, q = F.log_softmax(t.float(), -1), F.log_softmax(s.float(), -1)
        values = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
        return (values * valid).sum() / valid.sum()

    return loss


def trl_loss(options: argparse.Namespace, data: dict[str, Tensor]) -> Loss:
    """The loss of TRL's `GKDTrainer` on the logits."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    labels = torch.where(data["valid"], data["input_ids"], -100)

    def loss(small: nn.Module, big: nn.Module) -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            s = small(data["input_ids"], use_cache=False).logits
            with torch.no_grad():
                t = big(data["input_ids"], use_cache=False).logits
        return GKDTrainer.generalized_jsd_loss(s, t, labels=labels, beta=0.0)

    return loss


def trl_chunked_loss(options: argparse.Namespace, data: dict[str, Tensor]) -> Loss:
    """The loss of TRL's `DistillationTrainer` on the hidden states."""
    from trl.trainer import distillation_trainer

    chunked = distillation_trainer._chunked_divergence_loss

    def loss(small: Any, big: Any) -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                t = big.model(data["input_ids"], use_cache=False).last_hidden_state
            s = small.model(data["input_ids"], use_cache=False).last_hidden_state
        weights = small.lm_head.weight.to(s.dtype), big.lm_head.weight.to(t.dtype)
        return chunked(s, t, *weights, data["valid"], 0.0)[0]

    return loss


def liger_loss(options: argparse.Namespace, data: dict[str, Tensor]) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    head_loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0)
    labels = torch.where(data["valid"], data["input_ids"], -100).flatten()

    def loss(small: Any, big: Any) -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                t = big.model(data["input_ids"], use_cache=False).last_hidden_state
            s = small.model(data["input_ids"], use_cache=False).last_hidden_state
        dtype = s.dtype if options.bf16 else torch.float32
        found = head_loss(
            s.flatten(0, 1).to(dtype),
            small.lm_head.weight.to(dtype),
            t.flatten(0, 1).to(dtype),
            big.lm_head.weight.to(dtype),
            labels,
        )
        value = found[0] if isinstance(found, tuple) else found
        return value

    return loss


def torchdistill_loss(options: argparse.Namespace, data: dict[str, Tensor]) -> Loss:
    """torchdistill's `KDLoss`, whose `batchmean` is over the first axis: of the valid tokens."""
    from torchdistill.losses.mid_level import KDLoss

    soft = KDLoss("m", "output", "m", "output", temperature=1.0, alpha=0.0)
    valid = data["valid"]

    def loss(small: nn.Module, big: nn.Module) -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            s = small(data["input_ids"], use_cache=False).logits
            with torch.no_grad():
                t = big(data["input_ids"], use_cache=False).logits
        return soft({"m": {"output": s[valid]}}, {"m": {"output": t[valid]}}, None)

    return loss


PEERS: dict[str, Callable[..., Loss]] = {
    "plain eager loop": plain_loss,
    "TRL's GKDTrainer": trl_loss,
    "TRL's DistillationTrainer": trl_chunked_loss,
    "Liger's chunked head": liger_loss,
    "torchdistill's KDLoss": torchdistill_loss,
}


def agreement(options: argparse.Namespace, pair: Any, data: Any) -> tuple[list[str], list[str]]:
    """What agrees with the plain loop, and which peers cannot be compared."""

    def of_peer(peer: Any) -> dict[str, Tensor]:
        return peer_gradients(peer(options, data), pair)

    expected, tolerance = of_peer(plain_loss), 5e-2 if options.bf16 else 1e-5
    notes, left_out = [], []
    for way in ("logits", "head"):
        found = fkd_gradients(objective(options, pair, way), data, bf16=options.bf16)
        notes.append(same(f"fkd, {way}", found, expected, tolerance))
    for name, peer in PEERS.items():
        if name == "plain eager loop":
            continue
        try:
            notes.append(same(name, of_peer(peer), expected, tolerance))
        except (Exception, SystemExit) as error:
            left_out.append(name)
            notes.append(f"{name}: left out: {type(error).__name__}: {str(error)[:120]}")
    return notes, left_out


def main() -> None:
    parser = arguments(__doc__ or "", tokens=0, vocab=0, length=128)
    parser.add_argument("--student", help="hidden,layers,heads,kv heads,intermediate")
    parser.add_argument("--teacher", help="the same")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, default in DEFAULTS[options.device].items():
        setattr(options, name, getattr(options, name) or default)
    given = (options.student, options.teacher)
    sizes = [
        tuple(map(int, g.split(","))) if g else d
        for g, d in zip(given, SIZES[options.device], strict=True)
    ]
    pair, data = [llama(options, size) for size in sizes], text(options)
    pair[1].eval()
    notes, left_out = agreement(options, pair, data)
    print("\n".join(notes))

    def step(way: str, compile: Any = True) -> Run:
        return fkd_step(objective(options, pair, way), data, compile=compile, bf16=options.bf16)

    # Peers hold the teacher in the precision that they compute in, as fkd does.
    peers = pair[0], copy.deepcopy(pair[1]).bfloat16() if options.bf16 else pair[1]
    make: dict[str, Callable[[], Run]] = {
        "fkd, logits": lambda: step("logits"),
        "fkd, head": lambda: step("head"),
        "plain loop, models compiled": lambda: peer_step(
            plain_loss(options, data), peers, compiled=True
        ),
    }
    for name, peer in PEERS.items():
        if name not in left_out:
            make[name] = lambda peer=peer: peer_step(peer(options, data), peers)
    flops = needed_flops(lambda chosen: step("logits", chosen))
    rows = compare(make, options, baseline="fkd, logits")
    tokens = data["input_ids"].numel()
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    rate = gemm_rate(options, (tokens, 4 * sizes[0][0], sizes[0][0]), dtype)
    for row in rows.values():
        if "median_s" in row:
            row["tokens_per_s"] = tokens / row["median_s"]
            row["share_of_floor"] = flops / rate / row["median_s"]
    print(table(rows, {**COLUMNS, "tokens_per_s": ".0f", "share_of_floor": ".2f"}))
    notes.append(f"needed: {flops} FLOP a step; measured rate of matrix products: {rate:.3e}/s")
    write(f"language_model_{options.device}", options, rows, notes)


if __name__ == "__main__":
    main()
