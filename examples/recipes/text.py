"""Text encoders."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, module, student, teacher, term
from fkd.adapters import LinearProjection
from fkd.losses import (
    alp,
    attention_kl,
    attention_mse,
    bert_emd,
    cosine,
    cross_entropy,
    kl,
    layer_relation,
    mgskd_angle,
    mgskd_pair,
    mgskd_sample,
    minilm_relation,
    mse,
    pkd,
    rail,
    soft_cross_entropy,
    word_relation,
)

from ._recipe import Recipe
from ._small import AFTER_VALUES, adapter, texts, words


def distilbert():
    return {
        "kd": term(
            kl, student.logits, teacher.logits, temperature=2.0, weight=5.0,
            where=batch.attention_mask,
        ),
        "mlm": term(cross_entropy, student.logits, batch.labels, weight=2.0),
        "cosine": term(
            cosine, student.hidden_states[-1], teacher.hidden_states[-1],
            where=batch.attention_mask,
        ),
    }  # fmt: skip


def tinybert():
    project, mask = module("project"), batch.attention_mask
    pairs = fkd.layer_map(student=2, teacher=4)
    return {
        "hidden": {
            f"{s}<-{t}": term(
                mse, project(student.hidden_states[s]), teacher.hidden_states[t], where=mask
            )
            for s, t in [(0, 0), *pairs]
        },
        "attention": {
            f"{s}<-{t}": term(
                attention_mse, student.attention_scores(s - 1), teacher.attention_scores(t - 1),
                where=mask,
            )
            for s, t in pairs
        },
        "prediction": term(soft_cross_entropy, student.logits, teacher.logits, where=mask),
    }  # fmt: skip


def minilm():
    mask = batch.attention_mask
    return {
        "attention": term(attention_kl, student.attention(1), teacher.attention(3), where=mask),
        "values": term(
            minilm_relation, student.value(1), teacher.value(3), relation_heads=2, where=mask
        ),
    }


def minilm_v2():
    return {
        "relations": {
            part: term(
                minilm_relation, getattr(student, part)(1), getattr(teacher, part)(3),
                relation_heads=4, where=batch.attention_mask,
            )
            for part in ("query", "key", "value")
        }
    }  # fmt: skip


def mobilebert():
    project, mask = module("project"), batch.attention_mask
    pairs = fkd.layer_map(student=2, teacher=4)
    return {
        "transfer": {
            f"{s}<-{t}": {
                "map": term(
                    mse, project(student.hidden_states[s]), teacher.hidden_states[t], where=mask
                ),
                "attention": term(
                    attention_kl, student.attention(s - 1), teacher.attention(t - 1), where=mask
                ),
            }
            for s, t in pairs
        },
        "mlm": term(cross_entropy, student.logits, batch.labels, weight=0.5),
        "kd": term(kl, student.logits, teacher.logits, where=mask, weight=0.5),
    }


def patient():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.5),
        "kd": term(kl, student.logits, teacher.logits, temperature=10.0, weight=0.5),
        "patient": {
            f"{s}<-{t}": term(
                pkd,
                student.hidden_states[s][:, 0],
                teacher.hidden_states[t][:, 0],
                weight=100.0 / 768,
            )
            for s, t in [(1, 2)]
        },
    }


def stacked(*layers):
    return torch.stack(layers, dim=-2)


def earth_mover():
    project, mask = module("project"), batch.attention_mask
    mine = call(stacked, *(project(student.hidden_states[s]) for s in (1, 2)))
    theirs = call(stacked, *(teacher.hidden_states[t] for t in (1, 2, 3, 4)))
    return {
        "layers": term(bert_emd, mine, theirs, where=mask),
        "prediction": term(soft_cross_entropy, student.logits, teacher.logits, where=mask),
    }


def layer_attention():
    project, mask = module("project"), batch.attention_mask
    mine = call(stacked, *(project(student.hidden_states[s]) for s in (1, 2)))
    theirs = call(stacked, *(teacher.hidden_states[t] for t in (1, 2, 3, 4)))
    return {
        "layers": term(alp, mine, theirs, where=mask),
        "kd": term(kl, student.logits, teacher.logits, where=mask),
        "mlm": term(cross_entropy, student.logits, batch.labels),
    }


def random_layers():
    project, mask = module("project"), batch.attention_mask
    mine = call(stacked, *(project(student.hidden_states[s]) for s in (1, 2)))
    theirs = call(stacked, *(teacher.hidden_states[t] for t in (1, 2, 3, 4)))
    drawn = call(
        lambda ids: torch.randperm(4, device=ids.device)[:2].sort().values, batch.input_ids
    )
    return {
        "layers": term(rail, mine, theirs, layers=drawn, where=mask),
        "kd": term(kl, student.logits, teacher.logits, where=mask),
    }


def linguistic_context():
    mask = batch.attention_mask
    mine = call(stacked, *(student.hidden_states[s] for s in (0, 1, 2)))
    theirs = call(stacked, *(teacher.hidden_states[t] for t in (0, 2, 4)))
    return {
        "words": [
            term(word_relation, student.hidden_states[s], teacher.hidden_states[t], where=mask)
            for s, t in ((1, 2), (2, 4))
        ],
        "layers": term(layer_relation, mine, theirs, where=mask),
        "kd": term(kl, student.logits, teacher.logits, where=mask),
    }


def granularities():
    mask = batch.attention_mask
    last = (student.hidden_states[2], teacher.hidden_states[4])
    return {
        "tokens": [
            term(mgskd_pair, *last, relation_heads=2, where=mask),
            term(mgskd_angle, *last, relation_heads=2, vertices=3, neighbours=3, where=mask),
        ],
        "samples": term(mgskd_sample, last[0][:, 0], last[1][:, 0], relation_heads=2),
        "prediction": term(soft_cross_entropy, student.logits, teacher.logits, where=mask),
    }


LINEAR = adapter(lambda: LinearProjection(8, 16))

RECIPES = [
    Recipe("DistilBERT", "arXiv:1910.01108", distilbert, texts(16), words,
           "Student and teacher have one width."),
    Recipe("TinyBERT", "arXiv:1909.10351", tinybert, texts(project=LINEAR), words,
           "Its two stages are trained one after the other; one projection for all layers."),
    Recipe("MiniLM", "arXiv:2002.10957", minilm, texts(unused=AFTER_VALUES), words,
           "On the last layers. `relation_heads` is the number of attention heads. What comes "
           "after is no longer trained: `fkd.trainable(model, unused=[...])`."),
    Recipe("MiniLMv2", "arXiv:2012.15828", minilm_v2, texts(unused=AFTER_VALUES), words,
           "The teacher's layer may be any; relation heads are more than attention heads."),
    Recipe("MobileBERT", "arXiv:2004.02984", mobilebert, texts(project=LINEAR), words,
           "There, the layers are as many and as wide in both models, and are trained one after "
           "the other (weights that are schedules)."),
    Recipe("Patient knowledge distillation", "arXiv:1908.09355", patient, texts(16), words,
           "On [CLS] of chosen layers; one width. The published weight (100) is one of the mean "
           "over 768 features."),
    Recipe("BERT-EMD", "arXiv:2010.06133", earth_mover, texts(project=LINEAR), words,
           "Which layer learns from which is a transport plan."),
    Recipe("ALP-KD", "arXiv:2012.14022", layer_attention, texts(project=LINEAR), words,
           "Every student layer learns from an attention-weighted mix of teacher layers."),
    Recipe("RAIL-KD", "arXiv:2109.10164", random_layers, texts(project=LINEAR), words,
           "The teacher's layers are drawn again for every step, from the step's own seed."),
    Recipe("Contextual knowledge distillation", "arXiv:2109.08359", linguistic_context,
           texts(), words, "Relations of words, and of the layers of a word; no projection."),
    Recipe("MGSKD", "ACL 2022 (Liu et al.)", granularities, texts(), words,
           "Relations of tokens and of samples."),
]  # fmt: skip
