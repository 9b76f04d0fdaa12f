"""Published methods as lists of terms: what the catalogue shows is what the tests run."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import fkd
from fkd import batch, call, module, ref, student, teacher, term
from fkd.adapters import (
    GlobalContext,
    LearnableTemperature,
    LinearProjection,
    OrthogonalProjector,
    ReviewFusion,
    SimKDProjector,
    SRRLConnector,
)
from fkd.losses import (
    attention_kl,
    attention_mse,
    cosine,
    crd,
    crd_init,
    cross_entropy,
    ctkd_temperature,
    dist,
    dist_channel,
    dist_spatial,
    dkd,
    fgd_attention,
    fgd_focal,
    fgd_weight,
    hcl,
    in_batch_kl,
    irg_edge,
    irg_transformation,
    kl,
    logit_mse,
    minilm_relation,
    mse,
    pkd,
    sampled_reverse_kl,
    smooth_l1,
    soft_cross_entropy,
    standardize,
    virtual_teacher,
)  # fmt: skip

from .models import CNN, images

INTRODUCTION = """\
Published methods as terms of an objective. Adapters are named here (`module("project")`) and given
to `fkd.Objective(terms, student=..., teacher=..., project=fkd.trainable(...))`. Names come from
`fkd`, `fkd.losses` and `fkd.schedules`; weights are those of the papers.
"""


@dataclass(frozen=True)
class Recipe:
    """A method: its terms, what is said about it, and small models to run it on."""

    title: str
    note: str
    terms: Callable[[], Any]
    models: Callable[[], dict[str, Any]]
    data: Callable[[], dict[str, torch.Tensor]]

    @property
    def source(self) -> str:
        """The body of the function that makes the terms."""
        text = inspect.getsource(self.terms).split("\n", 1)[1]
        return (
            textwrap.dedent(text)
            .replace("return {", "terms = {")
            .replace("  # fmt: skip", "")
            .rstrip()
        )


def bert(width: int, layers: int) -> Any:
    import transformers as hf

    sizes: dict[str, Any] = dict(num_attention_heads=2, intermediate_size=8, vocab_size=20)
    config = hf.BertConfig(
        hidden_size=width, num_hidden_layers=layers, max_position_embeddings=8, **sizes
    )
    return hf.BertForMaskedLM(config)


LAST_LAYER = ["attention.output", "intermediate", "output"]
AFTER_VALUES = [f"bert.encoder.layer.1.{name}" for name in LAST_LAYER] + ["cls"]
"""What of a BERT of two layers comes after the attention of the last."""


def texts(
    student_width: int = 8, unused: Sequence[str] = (), **more: Callable[[], Any]
) -> Callable[[], dict[str, Any]]:
    """Makers of a BERT with two layers and its teacher with four."""
    return lambda: {
        "student": fkd.trainable(bert(student_width, 2), unused=unused),
        "teacher": fkd.frozen(bert(16, 4)),
        **{name: make() for name, make in more.items()},
    }


def pictures(unused: Sequence[str] = (), **more: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """Makers of a small CNN and its teacher."""
    return lambda: {
        "student": fkd.trainable(CNN(4), unused=unused),
        "teacher": fkd.frozen(CNN(6)),
        **{name: make() for name, make in more.items()},
    }


def words() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 0, 0]])
    return {
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.tensor([[-100, 4, -100, -100, 7], [8, -100, -100, -100, -100]]),
    }


def boxed() -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[1.0, 1.0, 4.0, 3.0], [0.0, 5.0, 2.0, 8.0]])
    return images() | {"boxes": boxes.expand(4, 2, 4), "valid": torch.tensor([[1, 0]] * 4)}


def adapter(make: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: fkd.trainable(make())


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


def contrastive():
    embeddings = (
        module("student_head")(call(torch.mean, student.maps[-1], dim=(2, 3))),
        module("teacher_head")(call(torch.mean, teacher.maps[-1], dim=(2, 3))),
    )
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "crd": term(crd, *embeddings, state=crd_init(64, 8), dataset_size=50_000, weight=0.8),
    }


def standardized():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "kd": term(
            kl, call(standardize, student.logits), call(standardize, teacher.logits),
            temperature=2.0, weight=9.0,
        ),
    }  # fmt: skip


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


def teacher_free():
    virtual = call(virtual_teacher, batch.labels, 5, correct=0.99)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
        "kd": term(kl, student.logits, virtual, temperature=20.0, weight=0.9),
    }


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


def annealing():
    def annealed(student_logits, teacher_logits, *, phi, where=None):
        return logit_mse(student_logits, phi * teacher_logits, where=where)

    return {
        "kd": term(
            annealed, student.logits, teacher.logits,
            phi=fkd.schedules.linear(1 / 7, 1.0, steps=7000),
        )
    }  # fmt: skip


def embed_distill():
    pooled = [model.hidden_states[-1][:, 0] for model in (student, teacher)]
    embedding = module("project")(pooled[0])
    return {
        "embedding": term(cosine, embedding, pooled[1]),
        "scores": term(in_batch_kl, embedding, pooled[1], embedding, pooled[1], temperature=0.05),
    }


def on_policy():
    drawn = call(torch.clamp, batch.labels, min=0)
    counts = call(torch.ge, batch.labels, 0)
    return {
        "kd": term(sampled_reverse_kl, student.logits, teacher.logits, drawn, where=counts),
        "reverse_kl": fkd.metric(
            sampled_reverse_kl, student.logits, teacher.logits, drawn, where=counts,
            estimator="k3",
        ),
    }  # fmt: skip


def instance_graph():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "vertices": term(logit_mse, student.logits, teacher.logits),
        "edges": [term(irg_edge, student.maps[k], teacher.maps[k]) for k in (0, 1)],
        "transformation": term(
            irg_transformation, student.maps[0], teacher.maps[0], student.maps[1], teacher.maps[1]
        ),
    }


LINEAR = adapter(lambda: LinearProjection(8, 16))

RECIPES = [
    Recipe("DistilBERT", "Of arXiv:1910.01108. Student and teacher have one width.",
           distilbert, texts(16), words),
    Recipe("TinyBERT", "Of arXiv:1909.10351, whose two stages are trained one after the other; one "
           "projection for all layers.", tinybert, texts(project=LINEAR), words),
    Recipe("MiniLM", "Of arXiv:2002.10957, on the last layers. `relation_heads` is the number of "
           "attention heads. What comes after is no longer trained: "
           "`fkd.trainable(model, unused=[...])`.", minilm, texts(unused=AFTER_VALUES), words),
    Recipe("MiniLMv2", "Of arXiv:2012.15828. The teacher's layer may be any; relation heads are "
           "more than attention heads.", minilm_v2, texts(unused=AFTER_VALUES), words),
    Recipe("MobileBERT", "Of arXiv:2004.02984. There, the layers are as many and as wide in both "
           "models, and are trained one after the other (weights that are schedules).",
           mobilebert, texts(project=LINEAR), words),
    Recipe("Patient knowledge distillation", "Of arXiv:1908.09355, on [CLS] of chosen layers; one "
           "width. The published weight (100) is one of the mean over 768 features.",
           patient, texts(16), words),
    Recipe("SRRL", "ICLR 2021, with `SRRLConnector`.", srrl,
           pictures(connect=adapter(lambda: SRRLConnector(4, 6))), images),
    Recipe("SimKD", "Of arXiv:2203.14001, with `SimKDProjector`; at test time the teacher's "
           "classifier reads what it makes.", simkd,
           pictures(unused=["head"], project=adapter(lambda: SimKDProjector(4, 6))), images),
    Recipe("DKD with a warm-up", "Of arXiv:2203.08679: 20 epochs of 391 steps.", decoupled,
           pictures(), images),
    Recipe("CTKD", "Of arXiv:2211.16231; `temperature=fkd.trainable(LearnableTemperature())`, "
           "trained against the student.", curriculum,
           pictures(temperature=adapter(LearnableTemperature)), images),
    Recipe("CRD", "Of arXiv:1910.10699, with a queue of 16384 x 128 there, and a "
           "`LinearProjection` for each model.", contrastive,
           pictures(student_head=adapter(lambda: LinearProjection(4, 8)),
                    teacher_head=adapter(lambda: LinearProjection(6, 8))), images),
    Recipe("Logit standardisation", "Of arXiv:2403.01427.", standardized, pictures(), images),
    Recipe("DIST+", "TPAMI 2025, after arXiv:2205.10536.", dist_plus,
           pictures(project=adapter(lambda: torch.nn.Conv2d(4, 6, 1))), images),
    Recipe("ReviewKD", "Of arXiv:2104.09044, with `ReviewFusion`.", review,
           pictures(fusion=adapter(lambda: ReviewFusion((4, 4), (6, 6), middle=4))), images),
    Recipe("VkD", "Of arXiv:2403.06213, with `OrthogonalProjector`.", vkd,
           pictures(project=adapter(lambda: OrthogonalProjector(4, 6))), images),
    Recipe("FGD, for detectors", "Of arXiv:2111.11837: `project` is a 1x1 convolution, each "
           "`GlobalContext` belongs to one model. Weights of one-stage detectors; the last is "
           "lambda times the number of features.", detection,
           pictures(project=adapter(lambda: torch.nn.Conv2d(4, 6, 1)),
                    student_context=adapter(lambda: GlobalContext(6)),
                    teacher_context=adapter(lambda: GlobalContext(6))), boxed),
    Recipe("Instance relationship graph", "CVPR 2019; weights are left to the reader.",
           instance_graph, pictures(), images),
    Recipe("EmbedDistill", "Of arXiv:2301.12005. Models for queries and for documents are two more "
           "names; here one is both.", embed_distill,
           texts(unused=["cls"], project=LINEAR), words),
    Recipe("On-policy distillation", "The student's own tokens, as in arXiv:2306.13649; with both "
           "models' logits at hand `reverse_kl` has less variance.", on_policy,
           texts(), words),
    Recipe("Teacher-free distillation", "Of arXiv:1909.11723: no teacher at all.", teacher_free,
           lambda: {"student": fkd.trainable(CNN(4))}, images),
    Recipe("Deep mutual learning", "Of arXiv:1706.00384: `peer=fkd.trainable(...)`.", mutual,
           lambda: {"student": fkd.trainable(CNN(4)), "peer": fkd.trainable(CNN(6))}, images),
    Recipe("Mean teacher", "Of arXiv:1703.01780: `average=fkd.ema(\"student\", decay=0.999)`.",
           mean_teacher, lambda: {"student": fkd.trainable(CNN(4)),
                                  "average": fkd.ema("student", decay=0.999)}, images),
    Recipe("Several teachers", "The mean of their logits.", several,
           pictures(other=lambda: fkd.frozen(CNN(8))), images),
    Recipe("Annealing-KD", "Of arXiv:2104.07163, first stage: the teacher's logits are scaled from "
           "1/7 to 1.", annealing, pictures(), images),
]  # fmt: skip
