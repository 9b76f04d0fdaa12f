"""Predictions of classifiers."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, ref, student, teacher, term
from fkd.adapters import LearnableTemperature
from fkd.losses import (
    binary_cross_entropy,
    binary_kl,
    corrected_teacher,
    cross_entropy,
    ctkd_temperature,
    dist,
    dkd,
    flsw_temperature,
    hard_label,
    kl,
    logit_mse,
    mlkd_batch,
    mlkd_class,
    mlkd_instance,
    nkd,
    ofa,
    probability_shift,
    skd_direction,
    standardize,
    uskd_others,
    uskd_soft_label,
    uskd_target,
    virtual_teacher,
    wsld,
)

from ._recipe import Recipe
from ._small import CNN, adapter, images, pictures


def decoupled():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "dkd": term(
            dkd, student.logits, teacher.logits, batch.labels, alpha=1.0, beta=8.0,
            temperature=4.0, weight=fkd.schedules.warmup(steps=20 * 391),
        ),
    }  # fmt: skip


def curriculum():
    def ctkd(student_logits, teacher_logits, g, *, adversary, where=None):
        temperature = ctkd_temperature(g, start=1.0, span=20.0, adversary=adversary)
        return kl(student_logits, teacher_logits, temperature=temperature, where=where)

    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "kd": term(
            ctkd, student.logits, teacher.logits, ref("temperature").param("logit"),
            adversary=fkd.schedules.cosine(0.0, 1.0, steps=10 * 391), weight=0.9,
        ),
    }  # fmt: skip


def standardized():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "kd": term(
            kl, call(standardize, student.logits), call(standardize, teacher.logits),
            temperature=2.0, weight=9.0,
        ),
    }  # fmt: skip


def annealing():
    def annealed(student_logits, teacher_logits, *, phi, where=None):
        return logit_mse(student_logits, phi * teacher_logits, where=where)

    return {
        "kd": term(
            annealed, student.logits, teacher.logits,
            phi=fkd.schedules.linear(1 / 7, 1.0, steps=7000),
        )
    }  # fmt: skip


def teacher_free():
    virtual = call(virtual_teacher, batch.labels, 5, correct=0.99)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "kd": term(kl, student.logits, virtual, temperature=20.0, weight=0.9),
    }


def hinton():
    return {
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0, weight=0.9),
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
    }


def deep_nets():
    return {"logits": term(logit_mse, student.logits, teacher.logits)}


def normalized():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "nkd": term(nkd, student.logits, teacher.logits, batch.labels, gamma=1.5, temperature=1.0),
    }


def self_teacher():
    soft = call(uskd_soft_label, fkd.stop_gradient(student.logits), batch.labels)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "target": term(uskd_target, student.logits, batch.labels, soft_label=soft),
        "others": term(
            uskd_others, student.logits, fkd.stop_gradient(student.logits), batch.labels
        ),
    }


def weighted_soft_labels():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "soft": term(
            wsld, student.logits, teacher.logits, batch.labels, temperature=2.0, weight=2.25
        ),
    }


def stronger_teacher():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "dist": term(dist, student.logits, teacher.logits, beta=1.0, gamma=1.0),
    }


def multi_level():
    pair = (student.logits, teacher.logits)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "instance": term(mlkd_instance, *pair, weight=0.9),
        "batch": term(mlkd_batch, *pair, temperature=4.0),
        "class": term(mlkd_class, *pair, temperature=4.0),
    }


def streamlined():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "instance": term(kl, student.logits, teacher.logits),
        "direction": term(skd_direction, student.logits, teacher.logits),
    }


def one_for_all():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "ofa": term(ofa, student.logits, teacher.logits, batch.labels, gamma=1.0),
    }


def deit():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.5),
        "token": term(hard_label, student.logits, teacher.logits, weight=0.5),
    }


def prepared_lessons():
    shifted = call(probability_shift, teacher.logits, batch.labels)
    temperature = call(flsw_temperature, student.logits, shifted, base=4.0, beta=2.0)
    return {"kd": term(kl, student.logits, shifted, temperature=temperature)}


def corrective():
    corrected = call(corrected_teacher, teacher.logits, batch.labels, threshold=0.2)
    return {"mft": term(kl, student.logits, corrected)}


def multi_label():
    return {
        "labels": term(
            binary_cross_entropy,
            student.logits,
            call(torch.nn.functional.one_hot, batch.labels, 5),
        ),
        "kd": term(binary_kl, student.logits, teacher.logits, weight=10.0),
    }


def refined():
    def confidence(student_logits, teacher_logits, labels, *, temperature):
        right = (student_logits / temperature).softmax(-1).gather(-1, labels[..., None])
        sure = (teacher_logits / temperature).softmax(-1).amax(-1, keepdim=True)
        ours, theirs = (torch.cat([p, 1 - p], -1).clamp(1e-6) for p in (right, sure))
        return temperature**2 * (theirs * (theirs / ours).log()).sum(-1)

    def correlation(student_logits, teacher_logits, labels, *, temperature):
        wrong = teacher_logits >= teacher_logits.gather(-1, labels[..., None])
        pair = (x.masked_fill(wrong, -1e9) for x in (student_logits, teacher_logits))
        values = kl(*pair, temperature=temperature)
        return values.masked_fill(wrong.all(-1), 0.0)

    three = (student.logits, teacher.logits, batch.labels)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "confidence": term(confidence, *three, temperature=4.0),
        "correlation": term(correlation, *three, temperature=4.0),
    }


def ranked():
    def plackett_luce(student_logits, teacher_logits, labels):
        first = torch.nn.functional.one_hot(labels, student_logits.shape[-1]).bool()
        order = teacher_logits.masked_fill(first, torch.inf).argsort(-1, descending=True)
        chosen = student_logits.gather(-1, order)
        rest = chosen.flip(-1).logcumsumexp(-1).flip(-1)  # of this class and those after it
        weight = teacher_logits.softmax(-1).gather(-1, order)
        return (weight * (rest - chosen)).sum(-1)

    return {"pld": term(plackett_luce, student.logits, teacher.logits, batch.labels)}


RECIPES = [
    Recipe("Knowledge distillation", "arXiv:1503.02531", hinton, pictures(), images,
           "Hinton, Vinyals and Dean. The weights are those that CIFAR tables use."),
    Recipe("Do deep nets need to be deep?", "arXiv:1312.6184", deep_nets, pictures(), images,
           "The logits themselves, no labels."),
    Recipe("DKD with a warm-up", "arXiv:2203.08679", decoupled, pictures(), images,
           "Decoupled: the label, and the other classes. 20 epochs of 391 steps."),
    Recipe("NKD", "arXiv:2303.13005", normalized, pictures(), images,
           "The teacher's target class unnormalised, the others normalised."),
    Recipe("USKD", "arXiv:2303.13005", self_teacher,
           lambda: {"student": fkd.trainable(CNN(4))}, images,
           "The same without a teacher. The weak logits of the paper are left out."),
    Recipe("WSLD", "arXiv:2102.00650", weighted_soft_labels, pictures(), images,
           "Samples on which the teacher is better than the student weigh more."),
    Recipe("DIST", "arXiv:2205.10536", stronger_teacher, pictures(), images,
           "Correlation within a sample and within a class, for teachers that are much stronger."),
    Recipe("Multi-level logit distillation", "CVPR 2023 (Jin et al.)", multi_level, pictures(),
           images, "Samples, relations of the batch, relations of the classes."),
    Recipe("Streamlined knowledge distillation", "CVPR 2026 (Jeong et al.)", streamlined,
           pictures(), images, "Instances, and the direction of the batch's relations."),
    Recipe("One for all", "arXiv:2310.19444", one_for_all, pictures(), images,
           "Between architectures of different kinds. The paper reads branches at every stage; "
           "here is the loss of one."),
    Recipe("Refined logits (RLD)", "arXiv:2408.07703", refined, pictures(), images,
           "How sure the teacher is of whatever it says is asked of the label; classes that the "
           "teacher puts above the label are left out of the others."),
    Recipe("Plackett-Luce distillation (PLD)", "arXiv:2506.12542", ranked, pictures(), images,
           "The label first, then the classes as the teacher ranks them; each choice weighs as "
           "much as the teacher is sure of it. No other term is needed."),
    Recipe("DeiT, hard distillation", "arXiv:2012.12877", deit, pictures(), images,
           "There, the teacher's choice is learned by a second head: `student.distilled_logits`."),
    Recipe("Preparing lessons", "arXiv:1911.07471", prepared_lessons, pictures(), images,
           "A wrong teacher is corrected, and each sample has a temperature."),
    Recipe("Minifinetuning", "arXiv:2506.15702", corrective, pictures(), images,
           "A teacher that is wrong is mixed with the label until it is right."),
    Recipe("Multi-label distillation", "arXiv:2308.06453", multi_label, pictures(), images,
           "Every class is a yes or no of its own."),
    Recipe("CTKD", "arXiv:2211.16231", curriculum,
           pictures(temperature=adapter(LearnableTemperature)), images,
           "`temperature=fkd.trainable(LearnableTemperature())`, trained against the student."),
    Recipe("Logit standardisation", "arXiv:2403.01427", standardized, pictures(), images),
    Recipe("Annealing-KD", "arXiv:2104.07163", annealing, pictures(), images,
           "First stage: the teacher's logits are scaled from 1/7 to 1."),
    Recipe("Teacher-free distillation", "arXiv:1909.11723", teacher_free,
           lambda: {"student": fkd.trainable(CNN(4))}, images, "No teacher at all."),
]  # fmt: skip
