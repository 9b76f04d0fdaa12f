"""Models that are trained together, gradients term by term, samples with weights of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fkd
from fkd import batch, call, metric, module, ref, stop_gradient, student, teacher, term
from fkd.losses import cross_entropy, kl, mse, soft_cross_entropy, total_variation

from ._recipe import Recipe
from ._small import CLASSES, CNN, images, pictures


class Generator(nn.Module):
    """Noise to pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3 * 8 * 8), nn.Tanh())

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise).reshape(-1, 3, 8, 8)


class LogVariances(nn.Module):
    """One learned number for each term."""

    def __init__(self) -> None:
        super().__init__()
        self.kd = nn.Parameter(torch.zeros(()))
        self.labels = nn.Parameter(torch.zeros(()))


def with_noise() -> dict[str, Tensor]:
    return images() | {"noise": torch.randn(4, 4)}


def mixed() -> dict[str, Tensor]:
    return images() | {"other": torch.tensor([1, 2, 3, 0]), "share": torch.tensor(0.7)}


def easy_first() -> dict[str, Tensor]:
    return images() | {"difficulty": torch.tensor([0.0, 0.1, 0.2, 0.9]), "pace": torch.tensor(0.5)}


def weighted() -> dict[str, Tensor]:
    return images() | {"importance": torch.tensor([1.0, 0.5, 2.0, 0.0])}


def peers():
    peer = ref("peer")
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, to="student"),
        "kd": term(kl, student.logits, peer.logits, to="student"),
        "peer labels": term(cross_entropy, peer.logits, batch.labels, to="peer"),
        "peer kd": term(kl, peer.logits, student.logits, to="peer"),
    }


def data_free():
    made = module("generator")(batch.noise)
    logits = module("student")(made).logits, module("teacher")(made).logits

    def gap(s, t, where=None):
        return (s - t).abs().mean(-1)

    return {
        "imitate": term(gap, *logits, to="student"),
        "differ": term(gap, *logits, to="generator", weight=-1.0),
        "tv": metric(total_variation, *logits),
    }


def adversarial_temperature():
    def softened(s, t, g, where=None):
        return kl(s, t, temperature=1.0 + 20.0 * torch.sigmoid(g), where=where)

    arguments = student.logits, teacher.logits, ref("temperature").param("logit")
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "kd": term(softened, *arguments, weight=0.9, to="student"),
        "harder": term(
            softened, *arguments, to="temperature",
            weight=fkd.schedules.cosine(0.0, -1.0, steps=10 * 391),
        ),
    }  # fmt: skip


def assistant():
    helper = ref("assistant")
    return {
        "assistant": term(kl, helper.logits, teacher.logits, temperature=4.0, to="assistant"),
        "student": term(kl, student.logits, helper.logits, temperature=4.0, to="student"),
        "labels": term(cross_entropy, student.logits, batch.labels, to="student"),
    }


def uncertainty():
    kd, labels = (ref("variances").param(name) for name in ("kd", "labels"))

    def itself(x):
        return x

    return {
        "kd": term(kl, student.logits, teacher.logits, weight=torch.exp(-kd)),
        "labels": term(cross_entropy, student.logits, batch.labels, weight=torch.exp(-labels)),
        "log variances": term(itself, (kd + labels) / 2),
    }


def oriented():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0, weight=0.9),
    }


def mixup():
    def blend(one, other, share, classes):
        one_hot = torch.nn.functional.one_hot
        return share * one_hot(one, classes) + (1 - share) * one_hot(other, classes)

    soft = call(blend, batch.labels, batch.other, batch.share, 5)
    return {
        "labels": term(soft_cross_entropy, student.logits, torch.log(soft.clamp(min=1e-6))),
        "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
    }


def curriculum():
    return {
        "kd": term(
            kl, student.logits, teacher.logits, temperature=4.0,
            where=batch.difficulty <= batch.pace,
        )
    }  # fmt: skip


def hard_examples():
    def hardest(logits, labels, share):
        losses = cross_entropy(logits, labels)
        return losses >= losses.quantile(1.0 - share)

    chosen = call(hardest, stop_gradient(student.logits), batch.labels, 0.5)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, where=chosen),
        "kd": term(kl, student.logits, teacher.logits, weight=batch.importance),
    }


def strides():
    def same_size(x, like):
        return torch.nn.functional.adaptive_avg_pool2d(x, like.shape[-2:])

    wide = call(torch.nn.functional.avg_pool2d, teacher.maps[0], 2)
    mapped = call(same_size, module("project")(student.maps[0]), wide)
    return {"maps": term(mse, call(torch.movedim, mapped, 1, -1), call(torch.movedim, wide, 1, -1))}


def temperature() -> nn.Module:
    return fkd.adapters.LearnableTemperature()


RECIPES = [
    Recipe("Deep mutual learning, each with an optimizer", "arXiv:1706.00384", peers,
           lambda: {"student": fkd.trainable(CNN(4)), "peer": fkd.trainable(CNN(6))}, images,
           "`to=` says whom a term trains; "
           "`train_step(objective, {\"student\": make_sgd, \"peer\": make_adam})`."),
    Recipe("Data-free adversarial distillation", "arXiv:1912.11006", data_free,
           lambda: {"student": fkd.trainable(CNN(4)), "teacher": fkd.frozen(CNN(6)),
                    "generator": fkd.trainable(Generator())}, with_noise,
           "The loss is the mean absolute difference of the logits; the generator is updated once "
           "for five times of the student: "
           "`train_step(..., when=fkd.schedules.turns(student=5, generator=1))`. Noise is a field "
           "of the batch."),
    Recipe("Curriculum temperature, by terms", "arXiv:2211.16231", adversarial_temperature,
           pictures(temperature=lambda: fkd.trainable(temperature())), images,
           "The same loss trains the student down and the temperature up: a negative weight "
           "instead of a reversed gradient."),
    Recipe("An assistant that is trained along", "arXiv:2009.08825", assistant,
           lambda: {"student": fkd.trainable(CNN(4)), "assistant": fkd.trainable(CNN(6)),
                    "teacher": fkd.frozen(CNN(8))}, images,
           "Teacher, assistant and student in one run; no gradient of the student reaches the "
           "assistant."),
    Recipe("Uncertainty weights", "arXiv:1705.07115", uncertainty,
           pictures(variances=lambda: fkd.trainable(LogVariances())), images,
           "`variances` is a module with one parameter for each term, the logarithm of a variance; "
           "weights are refs to what is computed from it."),
    Recipe("DOT, a momentum for each term", "arXiv:2307.08436", oriented, pictures(), images,
           "`train_step(objective, sgd, combine=fkd.gradients.dot(task=[\"labels\"], "
           "distill=[\"kd\"]))`, with an SGD that has no momentum. Likewise `pcgrad()`, "
           "`conflict_free()`, `grad_norm()`, `min_norm()`, or a function of the gradients."),
    Recipe("Mixup with soft labels", "arXiv:1710.09412", mixup, pictures(), mixed,
           "`fit(prepare=...)` mixes the pictures, and gives the batch the labels of both and the "
           "share; cutmix gives the share of the area. Teacher and student see one picture."),
    Recipe("A curriculum", "ICML 2009", curriculum, pictures(), easy_first,
           "Samples count when they are easy enough; `prepare` sets `pace` from `state.step`. A "
           "sample that does not count has no gradient."),
    Recipe("Hard examples and weights of samples", "arXiv:1604.03540", hard_examples, pictures(),
           weighted, "The half of the batch on which the student is worst; and a weight for each "
           "sample, a field of the batch."),
    Recipe("Feature maps of different strides", "arXiv:1412.6550", strides,
           pictures(unused=["second", "head"],
                    project=lambda: fkd.trainable(nn.Conv2d(4, 6, 1))), images,
           "The larger map is pooled to the size of the smaller one. Maps of a detector are a list "
           "of terms."),
]  # fmt: skip

assert CLASSES == 5  # which `mixup` writes as a number
