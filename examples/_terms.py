"""The objective of the text examples: every term whose weight is not 0."""

from __future__ import annotations

import math
from argparse import Namespace
from typing import Any

from _text import DataError
from torch import nn

import fkd
from fkd import batch, call, student, teacher, term
from fkd.losses import (
    attention_kl,
    attention_mse,
    cosine,
    cross_entropy,
    kl,
    match_heads,
    minilm_relation,
    mse,
)  # fmt: skip


def objective(
    args: Namespace, positions: fkd.Ref, small: nn.Module, large: nn.Module
) -> fkd.Objective:
    """Every term whose weight is not 0, with adapters where the hidden sizes differ.

    `positions` says which logits count.
    """
    tokens = call(lambda mask, valid: mask * valid[:, None], batch.attention_mask, batch.valid)
    ours, theirs = small.config, large.config
    adapters: dict[str, Any] = {}

    def fitted(name: str, hidden: fkd.Ref) -> fkd.Ref:
        if ours.hidden_size == theirs.hidden_size:
            return hidden
        adapters[name] = fkd.trainable(nn.Linear(ours.hidden_size, theirs.hidden_size))
        return fkd.module(name)(hidden)

    terms: dict[str, Any] = {}
    if args.embedding or args.hidden or args.attention:
        pairs = fkd.layer_map(
            student=ours.num_hidden_layers,
            teacher=theirs.num_hidden_layers,
            strategy=args.layer_map,
        )
    if args.embedding:
        terms["embedding"] = term(
            mse,
            fitted("fit_embedding", student.hidden_states[0]),
            teacher.hidden_states[0],
            where=tokens,
            weight=args.embedding,
        )
    if args.hidden:
        loss = {"mse": mse, "cosine": cosine}[args.hidden_loss]
        terms["hidden"] = {
            f"{s}<-{t}": term(
                loss,
                fitted(f"fit_{s}", student.hidden_states[s]),
                teacher.hidden_states[t],
                where=tokens,
                weight=args.hidden / len(pairs),
            )
            for s, t in pairs
        }
    if args.attention:
        terms["attention"] = attention(args, ours, theirs, pairs, tokens)
    if args.logits:
        terms["logits"] = term(
            kl,
            student.logits,
            teacher.logits,
            temperature=args.temperature,
            where=positions,
            weight=args.logits,
        )
    if args.labels:
        terms["labels"] = term(cross_entropy, student.logits, batch.labels, weight=args.labels)
    if not terms:
        raise DataError(
            "every term has weight 0, or there are no labels; nothing is left to learn from."
        )
    unused = [] if args.logits or args.labels else _beyond_layers(small)
    return fkd.Objective(
        terms,
        student=fkd.trainable(small, unused=[*unused, *_pretraining(small)]),
        teacher=fkd.frozen(large),
        **adapters,
    )


def attention(args: Namespace, ours: Any, theirs: Any, pairs: Any, tokens: fkd.Ref) -> Any:
    """Maps layer by layer, or the relations of queries, keys and values in the last layer."""
    heads = math.gcd(ours.num_attention_heads, theirs.num_attention_heads)
    if args.attention_loss == "minilm":
        (s, t), weight = pairs[-1], args.attention / 3
        return {
            kind: term(
                minilm_relation,
                getattr(student, kind)(s - 1),
                getattr(teacher, kind)(t - 1),
                relation_heads=heads,
                where=tokens,
                weight=weight,
            )
            for kind in ("query", "key", "value")
        }
    kind = "attention_scores" if args.attention_loss == "scores" else "attention"
    loss = attention_kl if args.attention_loss == "kl" else attention_mse

    def matched(ref: fkd.Ref, config: Any) -> fkd.Ref:
        return ref if config.num_attention_heads == heads else call(match_heads, ref, heads=heads)

    return {
        f"{s}<-{t}": term(
            loss,
            matched(getattr(student, kind)(s - 1), ours),
            matched(getattr(teacher, kind)(t - 1), theirs),
            where=tokens,
            weight=args.attention / len(pairs),
        )
        for s, t in pairs
        if t > 0
    }


def _beyond_layers(model: nn.Module) -> list[str]:
    """What comes after the layers, which terms of the layers alone do not reach."""
    prefix = model.base_model_prefix
    return [f"{prefix}.pooler", *(n for n, _ in model.named_children() if n != prefix)]


def labels_objective(model: nn.Module) -> fkd.Objective:
    terms = {"labels": term(cross_entropy, student.logits, batch.labels)}
    return fkd.Objective(terms, student=fkd.trainable(model, unused=_pretraining(model)))


def _pretraining(model: nn.Module) -> list[str]:
    """What only pretraining uses (XLNet)."""
    return [name for name, _ in model.named_parameters() if name.endswith("mask_emb")]
