"""Relations of samples, embeddings, ranking."""

from __future__ import annotations

import torch
from torch.nn.utils.parametrizations import spectral_norm

import fkd
from fkd import batch, call, module, ref, student, teacher, term
from fkd.adapters import LinearProjection
from fkd.losses import (
    adaptive_layer_kl,
    correlation_congruence,
    cosine,
    crcd,
    crd,
    crd_init,
    cross_entropy,
    dino,
    dino_init,
    in_batch_kl,
    irg_edge,
    irg_transformation,
    kl,
    listwise_kl,
    logit_mse,
    margin_mse,
    pkt,
    queue_init,
    queue_kl,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
    sinkhorn,
)

from ._recipe import Recipe
from ._small import CNN, adapter, images, pictures, texts, words


def contrastive():
    embeddings = (
        module("student_head")(call(torch.mean, student.maps[-1], dim=(2, 3))),
        module("teacher_head")(call(torch.mean, teacher.maps[-1], dim=(2, 3))),
    )
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "crd": term(crd, *embeddings, state=crd_init(64, 8), dataset_size=50_000, weight=0.8),
    }


def complementary():
    embeddings = (
        module("student_head")(call(torch.mean, student.maps[-1], dim=(2, 3))),
        module("teacher_head")(call(torch.mean, teacher.maps[-1], dim=(2, 3))),
    )
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "crcd": term(crcd, *embeddings, state=crd_init(64, 8), dataset_size=50_000),
    }


def wasserstein():
    def pairs(student, teacher):  # [batch, batch, 2 width]
        return torch.cat(torch.broadcast_tensors(student[:, None], teacher[None]), -1)

    def dependency(scores):
        joint, others = scores.diagonal(), scores.sum(-1) - scores.diagonal()
        return others / (len(scores) - 1) - joint

    def directions(embeddings):
        return torch.nn.functional.normalize(embeddings, dim=-1)[None]

    ours = module("student_head")(mean_map(student))
    theirs = module("teacher_head")(mean_map(teacher))
    scores = module("critic")(call(pairs, ours, theirs))[..., 0]
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "global": term(dependency, scores, weight=0.8),
        "local": term(sinkhorn, call(directions, ours), call(directions, theirs), weight=0.05),
    }


def instance_graph():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "vertices": term(logit_mse, student.logits, teacher.logits),
        "edges": [term(irg_edge, student.maps[k], teacher.maps[k]) for k in (0, 1)],
        "transformation": term(
            irg_transformation, student.maps[0], teacher.maps[0], student.maps[1], teacher.maps[1]
        ),
    }


def embed_distill():
    pooled = [model.hidden_states[-1][:, 0] for model in (student, teacher)]
    embedding = module("project")(pooled[0])
    return {
        "embedding": term(cosine, embedding, pooled[1]),
        "scores": term(in_batch_kl, embedding, pooled[1], embedding, pooled[1], temperature=0.05),
    }


def mean_map(model):
    return call(torch.mean, model.maps[-1], dim=(2, 3))


def relational():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "distance": term(rkd_distance, mean_map(student), mean_map(teacher), weight=25.0),
        "angle": term(rkd_angle, mean_map(student), mean_map(teacher), weight=50.0),
    }


def similarity():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "similarity": term(
            similarity_preserving, student.maps[-1], teacher.maps[-1], weight=3000.0
        ),
    }


def congruence():
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
        "correlation": term(
            correlation_congruence, mean_map(student), mean_map(teacher), weight=0.02
        ),
    }


def probabilistic():
    return {"pkt": term(pkt, mean_map(student), mean_map(teacher), weight=30_000.0)}


def cross_encoder():
    def scores(queries, documents):
        return queries @ documents.T

    cls = student.hidden_states[-1][:, 0]
    theirs = teacher.hidden_states[-1][:, 0]
    return {"margin": term(margin_mse, call(scores, cls, cls), call(scores, theirs, theirs))}


def tightly_coupled():
    def scores(queries, documents):
        return queries @ documents.T

    cls = student.hidden_states[-1][:, 0]
    theirs = teacher.hidden_states[-1][:, 0]
    return {
        "lists": term(
            listwise_kl, call(scores, cls, cls), call(scores, theirs, theirs), temperature=0.25
        )
    }


def compress():
    return {
        "neighbours": term(
            queue_kl, module("project")(mean_map(student)), mean_map(teacher),
            state=queue_init(128, 6), temperature=0.04,
        )
    }  # fmt: skip


def dino_views():
    def views(logits):
        return logits.unflatten(0, (-1, 2))

    average = ref("average")
    return {
        "dino": term(
            dino, call(views, student.logits), call(views, average.logits), state=dino_init(5)
        )
    }


def matryoshka():
    last = student.hidden_states[2][:, 0]
    return {
        "embedding": term(cosine, module("project")(last), teacher.hidden_states[4][:, 0]),
        "layers": term(
            adaptive_layer_kl, student.hidden_states[1][:, 0], fkd.stop_gradient(last),
            temperature=0.3,
        ),
    }  # fmt: skip


def critic(width):
    """A function of Lipschitz constant 1."""
    layers = [spectral_norm(torch.nn.Linear(width, size)) for size in (width, 1)]
    return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])


LINEAR = adapter(lambda: LinearProjection(8, 16))

RECIPES = [
    Recipe("Relational distillation", "arXiv:1904.05068", relational, pictures(), images,
           "Distances and angles of the samples of a batch."),
    Recipe("Similarity-preserving distillation", "arXiv:1907.09682", similarity, pictures(),
           images),
    Recipe("Correlation congruence", "arXiv:1904.01802", congruence, pictures(), images),
    Recipe("PKT", "arXiv:1803.10837", probabilistic, pictures(["head"]), images,
           "The neighbourhood of every sample as a distribution."),
    Recipe("CRD", "arXiv:1910.10699", contrastive,
           pictures(student_head=adapter(lambda: LinearProjection(4, 8)),
                    teacher_head=adapter(lambda: LinearProjection(6, 8))), images,
           "A queue of 16384 x 128 there, and a `LinearProjection` for each model."),
    Recipe("CRCD", "arXiv:2103.16367", complementary,
           pictures(student_head=adapter(lambda: LinearProjection(4, 8)),
                    teacher_head=adapter(lambda: LinearProjection(6, 8))), images,
           "Relations to the teacher's embeddings of the batch, contrasted; the weight falls to 0 "
           "in the last epochs of the public code."),
    Recipe("WCoRD", "arXiv:2012.08674", wasserstein,
           pictures(student_head=adapter(lambda: LinearProjection(4, 8)),
                    teacher_head=adapter(lambda: LinearProjection(6, 8)),
                    critic=adapter(lambda: critic(16))), images,
           "Both forms of the Wasserstein distance: globally a critic whose layers have "
           "`spectral_norm` tells pairs of one sample from pairs of two, and student and critic "
           "widen the gap together; locally the transport cost within the batch. The negatives "
           "are those of the batch. Weights are left to the reader."),
    Recipe("Instance relationship graph", "CVPR 2019 (Liu et al.)", instance_graph, pictures(),
           images, "Weights are left to the reader."),
    Recipe("CompRess", "arXiv:2010.14713", compress,
           pictures(["head"], project=adapter(lambda: LinearProjection(4, 6))), images,
           "Without labels: similarities to a queue of teacher embeddings. SEED is the same with "
           "`teacher_key=True`."),
    Recipe("DINO", "arXiv:2104.14294", dino_views,
           lambda: {"student": fkd.trainable(CNN(4)), "average": fkd.ema("student", decay=0.99)},
           images, "Two views of each picture, one after the other in the batch; the teacher is "
           "`average=fkd.ema(\"student\", decay=0.996)`, and `DINOHead` is the head of both."),
    Recipe("EmbedDistill", "arXiv:2301.12005", embed_distill,
           texts(unused=["cls"], project=LINEAR), words,
           "Models for queries and for documents are two more names; here one is both."),
    Recipe("Margin-MSE", "arXiv:2010.02666", cross_encoder, texts(unused=["cls"]), words,
           "Differences of scores. With a cross-encoder as the teacher its scores are a field of "
           "the batch."),
    Recipe("TCT-ColBERT", "arXiv:2010.11386", tightly_coupled, texts(unused=["cls"]), words,
           "The documents of the batch are each query's candidates."),
    Recipe("2D Matryoshka", "arXiv:2402.14776", matryoshka,
           texts(unused=["cls"], project=LINEAR), words,
           "Lower layers learn the embedding of the last, so that the student can be cut."),
]  # fmt: skip
