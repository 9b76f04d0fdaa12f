"""Text encoders whose losses come one after the other, or begin smooth."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, module, student, teacher, term
from fkd.adapters import LinearProjection
from fkd.losses import (
    attention_kl,
    cos_nce,
    cosine,
    cross_entropy,
    logit_mse,
    mse,
    soft_cross_entropy,
)

from ._recipe import Recipe
from ._small import adapter, images, pictures, texts, words


def stacked():
    mask, steps = batch.attention_mask, 100

    def between(start, end):  # step functions, counted in steps of the run
        return fkd.schedules.piecewise({0: float(start == 0), start: 1.0, end: 0.0})

    return {
        "layers": {
            f"{s}<-{t}": {
                "attention": term(
                    attention_kl, student.attention(s - 1), teacher.attention(t - 1), where=mask,
                    weight=between(steps * (s - 1), steps * 6),
                ),
                "cls": term(
                    cosine, student.hidden_states[s][:, 0], teacher.hidden_states[t][:, 0],
                    weight=between(steps * (s - 1), steps * 6),
                ),
            }
            for s, t in fkd.layer_map(student=2, teacher=4)
        },
        "prediction": term(
            soft_cross_entropy, student.logits, teacher.logits, where=mask,
            weight=fkd.schedules.piecewise({0: 0.0, steps * 6: 1.0}),
        ),
    }  # fmt: skip


def continuation():
    steps, margin = 1000, 1.0
    smooth = fkd.schedules.piecewise({k * steps // 10: (k + 1) / 10 for k in range(10)})

    def beyond(s, t, *, share, where=None):
        values = logit_mse(s, share * t, where=where)
        return torch.relu(values - margin * share)

    return {
        "kd": term(
            beyond, student.logits, teacher.logits, share=smooth,
            weight=fkd.schedules.piecewise({0: 1.0, 2 * steps // 3: 0.0}),
        ),
        "labels": term(
            cross_entropy, student.logits, batch.labels,
            weight=fkd.schedules.linear(0.0, 0.75, steps=steps),
        ),
    }  # fmt: skip


def embedding_relations():
    mask = batch.attention_mask

    def local(h):
        return h @ h.mT / h.shape[-1]

    def everywhere(h, table):
        return h @ table.mT

    table = "bert.embeddings.word_embeddings.weight"
    pairs = fkd.layer_map(student=2, teacher=4)
    kept = call(lambda m: (m[:, :, None] & m[:, None, :]).bool(), mask)
    return {
        "local": [
            term(
                mse, call(local, student.hidden_states[s])[..., None],
                call(local, teacher.hidden_states[t])[..., None], where=kept,
            )
            for s, t in pairs
        ],
        "global": [
            term(
                mse, call(everywhere, student.hidden_states[s], student.param(table)),
                call(everywhere, teacher.hidden_states[t], teacher.param(table)), where=mask,
            )
            for s, t in pairs
        ],
        "prediction": term(soft_cross_entropy, student.logits, teacher.logits, where=mask),
    }  # fmt: skip


def latent_contrast():
    project, mask = module("project"), batch.attention_mask
    second = fkd.schedules.piecewise({0: 0.0, 500: 1.0})
    return {
        "contrast": [
            term(cos_nce, project(student.hidden_states[s])[:, 0], teacher.hidden_states[t][:, 0])
            for s, t in fkd.layer_map(student=2, teacher=4)
        ],
        "soft": term(
            soft_cross_entropy, student.logits, teacher.logits, temperature=1.1, where=mask,
            weight=second,
        ),
        "labels": term(
            cross_entropy, student.logits, batch.labels,
            weight=fkd.schedules.piecewise({0: 0.0, 500: 3.0}),
        ),
    }  # fmt: skip


RECIPES = [
    Recipe("Stacked internal distillation (SID)", "arXiv:1910.03723", stacked, texts(16), words,
           "One layer more after every 100 steps, the lower ones kept; then the predictions. As "
           "stages with optimizers of their own: `fkd.stages`."),
    Recipe("Continuation-KD", "arXiv:2212.05998", continuation, pictures(), images,
           "The teacher's logits grow from a tenth to all of them, errors below a margin are "
           "forgiven, and the labels take over; margin and schedules as in the GKD toolkit "
           "(arXiv:2306.06629)."),
    Recipe("ER-Distill", "arXiv:2306.06629", embedding_relations, texts(), words,
           "As in the GKD toolkit: relations of the tokens of a text, and of tokens to the whole "
           "vocabulary of embeddings, in all layers. No projection."),
    Recipe("LRC-BERT", "arXiv:2012.07335", latent_contrast,
           texts(project=adapter(lambda: LinearProjection(8, 16))), words,
           "First the contrast of [CLS] alone, then the predictions as well. Its perturbation of "
           "the embeddings by their gradient is a second pass, and not in here."),
]  # fmt: skip
