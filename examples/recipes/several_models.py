"""Several models, or one."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, ref, student, teacher, term
from fkd.losses import (
    cross_entropy,
    kl,
    mse,
    soft_cross_entropy,
)

from ._recipe import Recipe
from ._small import CNN, images, pictures


def mutual():
    peer = ref("peer")
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "peer labels": term(cross_entropy, peer.logits, batch.labels),
        "student": term(kl, student.logits, fkd.stop_gradient(peer.logits)),
        "peer": term(kl, peer.logits, fkd.stop_gradient(student.logits)),
    }


def mean_teacher():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "consistency": term(
            mse, call(torch.softmax, student.logits, dim=-1),
            call(torch.softmax, ref("average").logits, dim=-1),
            weight=fkd.schedules.linear(0.0, 100.0, steps=1000),
        ),
    }  # fmt: skip


def several():
    def mean(*logits):
        return torch.stack(logits).mean(0)

    return {"kd": term(kl, student.logits, call(mean, teacher.logits, ref("other").logits))}


def born_again():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "kd": term(kl, student.logits, teacher.logits),
    }


def noisy_student():
    return {"pseudo": term(soft_cross_entropy, student.logits, teacher.logits)}


def without_forgetting():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "old": term(kl, student.logits[:, :3], teacher.logits[:, :3], temperature=2.0),
    }


def assistant():
    return {
        "kd": term(kl, student.logits, ref("assistant").logits, temperature=4.0, weight=0.9),
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
    }


def noisy(batch):
    return {"image": batch["image"] + 0.1 * torch.randn_like(batch["image"])}


def clean(batch):
    return {"image": batch["image"]}


RECIPES = [
    Recipe("Deep mutual learning", "arXiv:1706.00384", mutual,
           lambda: {"student": fkd.trainable(CNN(4)), "peer": fkd.trainable(CNN(6))}, images,
           "`peer=fkd.trainable(...)`."),
    Recipe("Mean teacher", "arXiv:1703.01780", mean_teacher,
           lambda: {"student": fkd.trainable(CNN(4)),
                    "average": fkd.ema("student", decay=0.999)}, images,
           "`average=fkd.ema(\"student\", decay=0.999)`."),
    Recipe("Several teachers", "arXiv:1503.02531", several,
           pictures(other=lambda: fkd.frozen(CNN(8))), images, "The mean of their logits."),
    Recipe("Born-again networks", "arXiv:1805.04770", born_again,
           lambda: {"student": fkd.trainable(CNN(4)), "teacher": fkd.frozen(CNN(4))}, images,
           "The student is as large as its teacher, and is the teacher of the next run."),
    Recipe("Noisy student", "arXiv:1911.04252", noisy_student,
           lambda: {"student": fkd.trainable(CNN(6), inputs=noisy),
                    "teacher": fkd.frozen(CNN(4), inputs=clean)}, images,
           "The student sees the augmented picture, the teacher the clean one: "
           "`fkd.trainable(model, inputs=...)`."),
    Recipe("Learning without forgetting", "arXiv:1606.09282", without_forgetting,
           lambda: {"student": fkd.trainable(CNN(4)), "teacher": fkd.frozen(CNN(4))}, images,
           "The teacher is the network before it learned the new classes."),
    Recipe("Teacher assistant", "arXiv:1902.03393", assistant,
           lambda: {"student": fkd.trainable(CNN(4)), "assistant": fkd.frozen(CNN(6))}, images,
           "One run from the teacher to the assistant, then this one."),
]  # fmt: skip
