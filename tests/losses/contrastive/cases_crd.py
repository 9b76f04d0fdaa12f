"""Rows of the losses with a state. References are loops over the entries of the state."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import log_softmax, softmax

from fkd.losses import CRDState, DINOState, Queue, crcd, crd, dino, queue_kl

from ..case import Case, normal, pair


def queue(seed, valid):
    features = torch.nn.functional.normalize(normal(6, 3)(torch.Generator().manual_seed(seed)))
    return Queue(features, torch.tensor(valid, dtype=torch.bool))


FULL = CRDState(queue(1, [1] * 6), queue(2, [1] * 6))
PART = CRDState(queue(3, [1, 0, 1, 1, 0, 0]), queue(4, [1, 1, 0, 0, 0, 0]))
EMPTY = CRDState(queue(5, [0] * 6), queue(6, [0] * 6))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def critic(x, y, n, m, temperature):
    e = np.exp(x @ y / temperature)
    return e / (e + n / m)


def one_way(anchor, positive, queue, m, temperature):
    negatives = queue.features[queue.valid]
    n = len(negatives)
    if n == 0:
        return 0.0
    value = -np.log(critic(anchor, positive, n, m, temperature))
    return value - sum(np.log(1 - critic(anchor, y, n, m, temperature)) for y in negatives)


def crd_reference(student, teacher, *, state, dataset_size, temperature=0.07, anchor="both"):
    student, teacher, out = unit(student), unit(teacher), np.zeros(len(student))
    for b, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if anchor in ("both", "student"):
            out[b] += one_way(s, t, state.teacher, dataset_size, temperature)
        if anchor in ("both", "teacher"):
            out[b] += one_way(t, s, state.student, dataset_size, temperature)
    return out


def around(anchors, positives, x, queue, m, temperature):
    negatives, out = queue.features[queue.valid], np.zeros(len(x))
    n = len(negatives)
    for b in range(len(x) if n else 0):
        each = []
        for a in range(len(x)):
            if a != b:
                r = unit(x[b] - anchors[a])
                value = -np.log(critic(r, unit(positives[b] - anchors[a]), n, m, temperature))
                far = [critic(r, unit(y - anchors[a]), n, m, temperature) for y in negatives]
                each.append(value - np.log(1 - np.array(far)).sum())
        out[b] = np.mean(each) if each else 0.0
    return out


def crcd_reference(student, teacher, *, state, dataset_size, temperature=0.1, anchor="both"):
    s, t, m = unit(student), unit(teacher), dataset_size
    out = np.zeros(len(s))
    if anchor in ("both", "teacher"):
        out = out + around(t, t, s, state.teacher, m, temperature)
    if anchor in ("both", "student"):
        out = out + around(s, s, t, state.student, m, temperature)
    return out


def queue_kl_reference(
    student, teacher, *, state, temperature=0.07, teacher_temperature=None, teacher_key=False
):
    student, teacher, out = unit(student), unit(teacher), np.zeros(len(student))
    for b, (s, t) in enumerate(zip(student, teacher, strict=True)):
        keys = state.features[state.valid]
        keys = np.concatenate([keys, t[None]]) if teacher_key else keys
        if len(keys):
            log_p = log_softmax(keys @ t / (teacher_temperature or temperature))
            log_q = log_softmax(keys @ s / temperature)
            out[b] = (np.exp(log_p) * (log_p - log_q)).sum()
    return out


def dino_reference(
    student,
    teacher,
    *,
    state,
    student_temperature=0.1,
    teacher_temperature=0.04,
    momentum=0.9,
    same_view=False,
):
    del momentum  # acts on the state only
    p = softmax((teacher - state.center) / teacher_temperature, axis=-1)
    log_q = log_softmax(student / student_temperature, axis=-1)
    pairs = [
        -(p[:, i] * log_q[:, j]).sum(-1)
        for i in range(p.shape[1])
        for j in range(log_q.shape[1])
        if same_view or i != j
    ]
    return np.mean(pairs, axis=0)


CENTER = DINOState(normal(4)(torch.Generator().manual_seed(7)))

CASES = (
    [
        Case(
            crd,
            pair(4, 3),
            crd_reference,
            kwargs={"state": state, "dataset_size": 50.0, **kwargs},
            zero_at_equality=False,
            half_rtol=2e-3,
            shared=("state",),
            rtol=1e-7,
            note="the negatives keep the loss above 0",
            name=f"crd {label}",
        )
        for label, state, kwargs in [
            ("both", FULL, {}),
            ("student", PART, {"anchor": "student"}),
            ("teacher", PART, {"anchor": "teacher", "temperature": 0.5}),
            ("empty", EMPTY, {}),
        ]
    ]
    + [
        Case(
            crcd,
            pair(rows, 3),
            crcd_reference,
            kwargs={"state": state, "dataset_size": 50.0, **kwargs},
            zero_at_equality=False,
            relational=True,
            half_rtol=5e-3,
            gradcheck=checked,
            shared=("state",),
            rtol=1e-7,
            note="the negatives keep the loss above 0; anchors are held",
            name=f"crcd {label}",
        )
        for label, rows, state, kwargs, checked in [
            ("both", 4, FULL, {}, ()),
            ("teacher", 4, PART, {"anchor": "teacher", "temperature": 0.5}, (0,)),
            ("student", 4, PART, {"anchor": "student"}, (1,)),
            ("one sample", 1, FULL, {}, ()),
            ("empty", 4, EMPTY, {}, ()),
        ]
    ]
    + [
        Case(
            queue_kl,
            pair(4, 3),
            queue_kl_reference,
            kwargs={"state": state.teacher},
            half_rtol=2e-3,
            shared=("state",),
            atol=1e-9,
            name=f"queue_kl {label}",
        )
        for label, state in [("full", FULL), ("part", PART), ("empty", EMPTY)]
    ]
    + [
        Case(
            queue_kl,
            pair(4, 3),
            queue_kl_reference,
            kwargs={
                "state": state.teacher,
                "teacher_key": True,
                "temperature": 0.5,
                "teacher_temperature": 0.2,
            },
            zero_at_equality=False,
            half_rtol=2e-3,
            shared=("state",),
            note="two temperatures",
            name=f"queue_kl SEED {label}",
        )
        for label, state in [("full", FULL), ("part", PART), ("empty", EMPTY)]
    ]
    + [
        Case(
            dino,
            lambda g, s=s, t=t: (normal(3, s, 4)(g), normal(3, t, 4)(g)),
            dino_reference,
            kwargs={"state": CENTER, **kwargs},
            zero_at_equality=False,
            half_rtol=2e-3,
            shared=("state",),
            note="a cross-entropy is not 0 at equality",
            name=f"dino {label}",
        )
        for label, s, t, kwargs in [
            ("more views", 3, 2, {}),
            ("two views", 2, 2, {"student_temperature": 0.5}),
            ("one view", 1, 1, {"same_view": True}),
        ]
    ]
)

NOT_LOSSES = {
    name: "test_contrastive.py" for name in ("crd_init", "queue_init", "dino_init", "enqueue")
}
