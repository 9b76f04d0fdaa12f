"""Feature maps."""

from __future__ import annotations

import torch

import fkd
from fkd import batch, call, module, student, teacher, term
from fkd.adapters import (
    AFDAttention,
    ConvRegressor,
    GlobalContext,
    LinearProjection,
    MaskedGenerator,
    OrthogonalProjector,
    PADVariance,
    PairProjections,
    Paraphraser,
    ReviewFusion,
    SemCKDAttention,
    SimKDProjector,
    SRRLConnector,
    Translator,
    VarianceHead,
)
from fkd.losses import (
    activation_boundary,
    afd,
    attention_transfer,
    cat_kd,
    cross_entropy,
    cwd,
    dist,
    dist_channel,
    dist_spatial,
    factor_transfer,
    fbkd_attention,
    fbkd_masked,
    fgd_attention,
    fgd_focal,
    fgd_weight,
    fsp,
    hcl,
    ickd,
    kdsvd,
    kl,
    log_distance,
    logit_mse,
    margin_relu,
    mgd,
    mse,
    negative_mean,
    nst,
    pad,
    partial_l2,
    pearson,
    semckd,
    smooth_l1,
    vid,
)

from ._recipe import Recipe
from ._small import adapter, images, pictures


def srrl():
    features = call(torch.mean, module("connect")(student.maps[-1]), dim=(2, 3))
    by_teacher = call(
        torch.nn.functional.linear,
        features,
        teacher.param("head.weight"),
        teacher.param("head.bias"),
    )
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "features": term(mse, features, call(torch.mean, teacher.maps[-1], dim=(2, 3))),
        "regression": term(logit_mse, by_teacher, teacher.logits),
    }  # fmt: skip


def simkd():
    mapped = call(torch.movedim, module("project")(student.maps[-1]), 1, -1)
    return {"features": term(mse, mapped, call(torch.movedim, teacher.maps[-1], 1, -1))}


def dist_plus():
    project = module("project")
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "dist": term(dist, student.logits, teacher.logits, beta=1.0, gamma=1.0),
        "channel": term(dist_channel, project(student.maps[-1]), teacher.maps[-1]),
        "spatial": term(dist_spatial, student.maps[-1], teacher.maps[-1]),
    }


def review():
    fused = module("fusion")(student.maps)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "review": [
            term(hcl, fused[k], teacher.maps[k], weight=fkd.schedules.warmup(steps=20 * 391))
            for k in range(2)
        ],
    }


def vkd():
    def layer_norm(x):
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    features = call(torch.mean, student.maps[-1], dim=(2, 3))
    target = call(torch.mean, teacher.maps[-1], dim=(2, 3))
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "vkd": term(smooth_l1, module("project")(features), call(layer_norm, target)),
    }


def detection():
    project = module("project")(student.maps[-1])
    weight = call(
        fgd_weight, batch.boxes, size=(8, 8), foreground=1e-3, background=5e-4, valid=batch.valid
    )
    contexts = [
        call(torch.movedim, module("student_context")(project), 1, -1),
        call(torch.movedim, module("teacher_context")(teacher.maps[-1]), 1, -1),
    ]
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "focal": term(fgd_focal, project, teacher.maps[-1], place_weight=weight),
        "attention": term(fgd_attention, project, teacher.maps[-1], weight=1e-3),
        "global": term(mse, *contexts, weight=5e-6 * 6 * 8 * 8),
    }


def hints():
    hint = module("regressor")(student.maps[0])
    return {
        "hint": term(mse, call(torch.movedim, hint, 1, -1),
                     call(torch.movedim, teacher.maps[0], 1, -1)),
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
        "labels": term(cross_entropy, student.logits, batch.labels),
    }  # fmt: skip


def attention_maps():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "attention": [
            term(attention_transfer, student.maps[k], teacher.maps[k], weight=1000.0)
            for k in (0, 1)
        ],
    }


def neuron_selectivity():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "nst": term(nst, student.maps[-1], teacher.maps[-1], weight=50.0),
    }


def flow():
    project = module("project")
    mine = [project(student.maps[0]), project(student.maps[1])]
    return {"fsp": term(fsp, mine[0], teacher.maps[0], mine[1], teacher.maps[1])}


def variational():
    mean, log_scale = (
        call(lambda pair, i=i: pair[i], module("head")(student.maps[-1])) for i in (0, 1)
    )
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "vid": term(vid, mean, teacher.maps[-1], log_scale=log_scale),
    }  # fmt: skip


def boundaries():
    return {
        "boundary": term(
            activation_boundary, module("project")(student.tap("second")), teacher.tap("second")
        )
    }


def overhaul():
    margin = call(
        lambda weight, bias: negative_mean(bias, weight.abs()),
        teacher.param("second.1.weight"),
        teacher.param("second.1.bias"),
    )
    target = call(margin_relu, teacher.tap("second"), margin)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "features": term(
            partial_l2, module("project")(student.tap("second")), target, weight=1e-3
        ),
    }  # fmt: skip


def factors():
    factor = call(lambda pair: pair[0], module("paraphraser")(teacher.maps[-1]))
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "factors": term(factor_transfer, module("translator")(student.maps[-1]), factor),
    }


def masked_generation():
    def keep(images):
        return torch.rand(len(images), 1, 8, 8, device=images.device) > 0.65

    generated = module("generator")(student.maps[-1], call(keep, batch.image))
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "mgd": term(mgd, generated, teacher.maps[-1], weight=2e-5),
    }


def channels():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "cwd": term(
            cwd, module("project")(student.maps[-1]), teacher.maps[-1], temperature=4.0,
            weight=50.0,
        ),
    }  # fmt: skip


def channel_correlation():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "ickd": term(ickd, module("project")(student.maps[-1]), teacher.maps[-1], weight=2.5),
    }


def semantic_calibration():
    weights = module("attention")(student.maps, teacher.maps)
    mapped = module("project")(student.maps, teacher.maps)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "pairs": {
            f"{s}<-{t}": term(
                semckd, mapped[s][t], teacher.maps[t], attention=weights[:, s, t], weight=200.0
            )
            for s in (0, 1)
            for t in (0, 1)
        },
    }


def attended_features():
    weights = module("attention")(student.maps, teacher.maps)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "pairs": {
            f"{s}<-{t}": term(
                afd, student.maps[s], teacher.maps[t], attention=weights[:, t, s], weight=50.0
            )
            for s in (0, 1)
            for t in (0, 1)
        },
    }


def pearson_detectors():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "pkd": term(pearson, module("project")(student.maps[-1]), teacher.maps[-1], weight=6.0),
    }


def class_attention():
    def activation(maps, weight):
        return torch.einsum("vc,bchw->bvhw", weight, maps)

    mine, theirs = (
        call(activation, m.maps[-1], m.param("head.weight")) for m in (student, teacher)
    )
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "cat": term(cat_kd, mine, theirs, size=2, weight=100.0),
    }


def singular_values():
    project = module("project")
    mine = [project(student.maps[k]) for k in (0, 1)]
    return {
        "kdsvd": term(kdsvd, mine[0], teacher.maps[0], mine[1], teacher.maps[1]),
        "labels": term(cross_entropy, student.logits, batch.labels),
    }


def prime_aware():
    mine = call(torch.mean, student.maps[-1], dim=(2, 3))
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "pad": term(
            pad, module("project")(mine), call(torch.mean, teacher.maps[-1], dim=(2, 3)),
            log_variance=module("variance")(mine),
        ),
    }  # fmt: skip


def projector():
    mine, theirs = (call(torch.mean, m.maps[-1], dim=(2, 3)) for m in (student, teacher))
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "features": term(log_distance, module("project")(mine), theirs),
    }


def foreground():
    project = module("project")(student.maps[-1])
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "attention": term(fbkd_attention, project, teacher.maps[-1], weight=4e-4),
        "masked": term(fbkd_masked, project, teacher.maps[-1], weight=2e-2),
    }


CONV = adapter(lambda: torch.nn.Conv2d(4, 6, 1))


def boxed() -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[1.0, 1.0, 4.0, 3.0], [0.0, 5.0, 2.0, 8.0]])
    return images() | {"boxes": boxes.expand(4, 2, 4), "valid": torch.tensor([[1, 0]] * 4)}


RECIPES = [
    Recipe("FitNets", "arXiv:1412.6550", hints,
           pictures(regressor=adapter(lambda: ConvRegressor((4, 8, 8), (6, 8, 8)))), images,
           "There, the hint is learned first and alone: a weight that is a schedule."),
    Recipe("Attention transfer", "arXiv:1612.03928", attention_maps, pictures(), images,
           "Where a network looks; channels may differ."),
    Recipe("Neuron selectivity transfer", "arXiv:1707.01219", neuron_selectivity, pictures(),
           images, "A polynomial kernel between channels: matrix products, no broadcast."),
    Recipe("FSP", "CVPR 2017 (Yim et al.)", flow, pictures(["head"], project=CONV),
           images, "How one layer leads to another. The first stage of two."),
    Recipe("VID", "arXiv:1904.05835", variational,
           pictures(head=adapter(lambda: VarianceHead(4, 6))), images,
           "The log-scale is learned with the student: it is a parameter of the adapter."),
    Recipe("Activation boundaries", "arXiv:1811.03233", boundaries,
           pictures(["head"], project=CONV), images,
           "Before the ReLU, by a tap. It initialises a student; labels come after."),
    Recipe("Comprehensive overhaul", "arXiv:1904.01866", overhaul, pictures(project=CONV), images,
           "Before the ReLU; the margin comes from the teacher's BatchNorm, by `param`."),
    Recipe("Factor transfer", "arXiv:1802.04977", factors,
           pictures(paraphraser=lambda: fkd.frozen(Paraphraser(6)),
                    translator=adapter(lambda: Translator(4, 6))), images,
           "The paraphraser is trained first, on the teacher, and frozen here."),
    Recipe("MGD", "arXiv:2205.01529", masked_generation,
           pictures(generator=adapter(lambda: MaskedGenerator(4, 6))), images,
           "The mask is drawn from the step's own seed."),
    Recipe("Channel-wise distillation", "arXiv:2011.13256", channels, pictures(project=CONV),
           images, "For segmentation: a distribution over the places of each channel."),
    Recipe("ICKD", "arXiv:2202.03680", channel_correlation, pictures(project=CONV), images,
           "The correlation of channels."),
    Recipe("SemCKD", "arXiv:2012.03236", semantic_calibration,
           pictures(attention=adapter(lambda: SemCKDAttention(2, 2, batch_size=4)),
                    project=adapter(lambda: PairProjections([4, 4], [6, 6]))), images,
           "Which stage learns from which is learned, by sample."),
    Recipe("Show, attend and distill", "arXiv:2102.02973", attended_features,
           pictures(attention=adapter(lambda: AFDAttention([4, 4], [6, 6], width=8))), images),
    Recipe("PKD, for detectors", "arXiv:2207.02039", pearson_detectors, pictures(project=CONV),
           images, "Normalised maps: magnitudes of the teacher do not matter."),
    Recipe("Class attention transfer", "arXiv:2304.12777", class_attention, pictures(), images,
           "Class activation maps from the classifier's weights, by `param`."),
    Recipe("KD-SVD", "arXiv:1807.06819", singular_values, pictures(project=CONV), images),
    Recipe("Prime-aware adaptive distillation", "arXiv:2008.01458", prime_aware,
           pictures(project=adapter(lambda: LinearProjection(4, 6)),
                    variance=adapter(lambda: PADVariance(4, 6))), images,
           "Samples that the student cannot follow weigh less."),
    Recipe("The role of the projector", "arXiv:2303.11098", projector,
           pictures(project=adapter(lambda: LinearProjection(4, 6, norm="batch"))), images),
    Recipe("FBKD, for detectors", "ICLR 2021 (Zhang and Ma)", foreground,
           pictures(project=CONV), images),
    Recipe("SRRL", "ICLR 2021 (Yang et al.)", srrl,
           pictures(connect=adapter(lambda: SRRLConnector(4, 6))), images,
           "The student's features go through the teacher's classifier."),
    Recipe("SimKD", "arXiv:2203.14001", simkd,
           pictures(["head"], project=adapter(lambda: SimKDProjector(4, 6))), images,
           "At test time the teacher's classifier reads what the projector makes."),
    Recipe("DIST+", "TPAMI 2025, after arXiv:2205.10536", dist_plus, pictures(project=CONV),
           images),
    Recipe("ReviewKD", "arXiv:2104.09044", review,
           pictures(fusion=adapter(lambda: ReviewFusion((4, 4), (6, 6), middle=4))), images),
    Recipe("VkD", "arXiv:2403.06213", vkd,
           pictures(project=adapter(lambda: OrthogonalProjector(4, 6))), images),
    Recipe("FGD, for detectors", "arXiv:2111.11837", detection,
           pictures(project=CONV, student_context=adapter(lambda: GlobalContext(6)),
                    teacher_context=adapter(lambda: GlobalContext(6))), boxed,
           "`project` is a 1x1 convolution, each `GlobalContext` belongs to one model. Weights of "
           "one-stage detectors; the last is lambda times the number of features."),
]  # fmt: skip
