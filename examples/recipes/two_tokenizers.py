"""Two tokenizers, or two spaces of hidden states."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, module, stop_gradient, student, teacher, term
from fkd.losses import cross_entropy, kl, pool_spans, project_vocabulary

from ._recipe import Recipe
from ._small import adapter, causal, prose, tokenized, two_texts


def projected():
    # Token i of the student hands its probability on to ids[i] of the teacher, in shares[i].
    ids, shares = torch.arange(20)[:, None], torch.ones(20, 1)

    def mean_over(x, spans, kept):
        inside = spans[:, None, :] == torch.arange(kept.shape[1], device=x.device)[:, None]
        return pool_spans(x, inside)

    spans = batch.spans
    mine = call(project_vocabulary, student.logits, ids, shares, size=24)
    mine = call(mean_over, mine, spans.student, spans.kept)
    theirs = call(mean_over, torch.log_softmax(teacher.logits, -1), spans.teacher, spans.kept)
    return {
        "labels": term(cross_entropy, student.logits, batch.targets),
        "projected": term(kl, torch.log(mine.clamp(min=1e-30)), theirs, where=spans.kept),
    }


def dual_space():
    targets = call(fkd.loops.next_tokens, batch.labels)
    counts = targets != -100
    head = stop_gradient(student.param("lm_head.weight"))
    theirs = call(torch.matmul, module("to_student")(teacher.hidden_states[-1]), head.mT)
    mine = call(
        torch.matmul,
        module("to_teacher")(student.hidden_states[-1]),
        teacher.param("lm_head.weight").mT,
    )
    return {
        "labels": term(cross_entropy, student.logits, targets, weight=0.5),
        "projector": term(cross_entropy, theirs, targets, weight=0.5),
        "student space": term(kl, student.logits, stop_gradient(theirs), where=counts, weight=0.5),
        "teacher space": term(kl, mine, teacher.logits, where=counts, weight=0.5),
    }


def embedded(table, read, following):
    return tuple(torch.nn.functional.embedding(x.clamp(min=0), table) for x in (read, following))


def dual_space_aligned():
    counts = [batch.targets != -100, batch.teacher_targets != -100]
    tables = [stop_gradient(m.param("transformer.wte.weight")) for m in (student, teacher)]
    heads = stop_gradient(student.param("lm_head.weight")), teacher.param("lm_head.weight")
    at_each = module("attend")(
        student.hidden_states[-1],
        teacher.hidden_states[-1],
        call(embedded, tables[0], batch.input_ids, batch.targets),
        call(embedded, tables[1], batch.teacher_input_ids, batch.teacher_targets),
        where=counts[0],
        teacher_where=counts[1],
    )
    theirs, mine = (call(torch.matmul, at_each[i], heads[i].mT) for i in (0, 1))
    right = call(lambda logits, ids: logits.argmax(-1) == ids, theirs, batch.targets)
    return {
        "labels": term(cross_entropy, student.logits, batch.targets, weight=0.5),
        "projector": term(cross_entropy, theirs, batch.targets, weight=0.5),
        "student space": term(
            kl, student.logits, stop_gradient(theirs), where=counts[0] & right, weight=0.5
        ),
        "teacher space": term(kl, mine, teacher.logits, where=counts[1], weight=0.5),
    }


def attend() -> torch.nn.Module:
    return fkd.adapters.CrossModelAttention(8, 16)


RECIPES = [
    Recipe("X-Token, by projection", "arXiv:2605.21699", projected, two_texts, tokenized,
           "Ids and shares come from how the teacher's tokenizer cuts the student's tokens. There, "
           "only the teacher's most probable tokens are compared, to save memory."),
    Recipe("Dual-space distillation (DSKD)", "arXiv:2406.17328", dual_space,
           causal(to_student=adapter(lambda: torch.nn.Linear(16, 8)),
                  to_teacher=adapter(lambda: torch.nn.Linear(8, 16))), prose,
           "Each model's states are read by the other's head. One tokenizer."),
    Recipe("Dual-space distillation, two tokenizers", "arXiv:2406.17328", dual_space_aligned,
           lambda: two_texts() | {"attend": fkd.trainable(attend())}, tokenized,
           "Attention between the two models' tokens says which belong together. The teacher in "
           "the student's space is only followed where its first choice is right."),
]  # fmt: skip
