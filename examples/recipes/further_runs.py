"""Models on several inputs, several teachers, drafters, and training that looks ahead."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fkd
from fkd import batch, call, module, ref, student, teacher, term
from fkd.losses import cross_entropy, dino, dino_init, kl, smooth_l1, soft_cross_entropy

from ._recipe import Recipe
from ._small import CNN, adapter, causal, images, pictures, prose
from .shapes import Pyramid


class Patches(nn.Module):
    """A picture, with some of its 16 patches masked, to outputs for all of it and for each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 2, stride=2)
        self.masked = nn.Parameter(torch.randn(width))
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(image).flatten(2).mT
        x = x if mask is None else torch.where(mask[..., None], self.masked, x)
        x = torch.tanh(self.mix(x.mT).mT)
        return {"whole": self.head(x.mean(1)), "patches": self.head(x)}


class Towers(nn.Module):
    """A picture and the words under it to two vectors of one space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.picture = nn.Linear(3 * 8 * 8, width)
        self.words = nn.Embedding(20, width)

    def forward(self, image: Tensor, words: Tensor) -> dict[str, Tensor]:
        both = {"image": self.picture(image.flatten(1)), "text": self.words(words).mean(1)}
        return {name: F.normalize(x, dim=-1) for name, x in both.items()}


class Drafter(nn.Module):
    """States of a language model and the words after them to the next states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.join = nn.Linear(2 * width, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)

    def forward(self, states: Tensor, words: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(states.shape[1], states.device)
        return self.layer(self.join(torch.cat([states, words], -1)), causal, is_causal=True)


class Quantized(CNN):
    """A CNN whose first block computes with weights of 4 bits; their steps are learned."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.log_steps = nn.Parameter(torch.full((channels, 1, 1, 1), -3.0))

    def forward(self, image: Tensor) -> Any:  # pyright: ignore
        conv, norm, relu = self.first
        scaled = conv.weight / self.log_steps.exp()
        rounded = scaled + (scaled.round() - scaled).detach()  # straight through
        weight = rounded.clamp(-8, 7) * self.log_steps.exp()
        return relu(norm(F.conv2d(image, weight, conv.bias, padding=1)))


def two_views() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        **{name: torch.randn(4, 3, 8, 8, generator=g) for name in ("one", "two")},
        **{f"{name}_mask": torch.rand(4, 16, generator=g) < 0.4 for name in ("one", "two")},
    }


def captioned() -> dict[str, Tensor]:
    return images() | {"words": torch.arange(20).reshape(4, 5)}


def practice_and_quiz() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    quiz = torch.randn(4, 3, 8, 8, generator=g), torch.randint(5, (4,), generator=g)
    return images() | {"quiz": quiz[0], "quiz_labels": quiz[1]}


def image_bert():
    average = ref("average")
    seen = {view: student.on(batch[view], batch[f"{view}_mask"]) for view in ("one", "two")}
    whole = {view: average.on(batch[view]) for view in ("one", "two")}

    def views(*logits):
        return torch.stack(logits, -2)

    return {
        "views": term(
            dino, *(call(views, *(model[view].whole for view in whole)) for model in (seen, whole)),
            state=dino_init(5),
        ),
        "patches": {
            view: term(
                dino, call(views, seen[view].patches), call(views, whole[view].patches),
                same_view=True, where=batch[f"{view}_mask"], state=dino_init(5), weight=0.5,
            )
            for view in whole
        },
    }  # fmt: skip


def two_towers():
    def scores(a, b):
        return a @ b.mT / 0.07

    def own(logits):
        return cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    project = module("project")
    image, text = project(student.image), project(student.text)
    to_text, to_image = call(scores, image, text), call(scores, text, image)
    wanted = call(scores, teacher.image, teacher.text), call(scores, teacher.text, teacher.image)

    def squares(s, t):
        return (s - t).square().sum(-1)

    return {
        "clip": [term(own, to_text, weight=0.5), term(own, to_image, weight=0.5)],
        "contrast": [term(kl, to_text, wanted[0]), term(kl, to_image, wanted[1])],
        "features": [
            term(squares, s, t, weight=2000.0)
            for s, t in ((image, teacher.image), (text, teacher.text))
        ],
        "interactive": [
            term(own, call(scores, image, teacher.text)),
            term(own, call(scores, text, teacher.image)),
        ],
    }


def drafted():
    counts, table = batch.attention_mask[:, 1:], teacher.param("transformer.wte.weight")
    states = teacher.hidden_states[-1]
    made = module("drafter")(
        states[:, :-1], call(torch.nn.functional.embedding, batch.input_ids[:, 1:], table)
    )
    head = teacher.param("lm_head.weight").mT
    return {
        "states": term(smooth_l1, made, states[:, 1:], where=counts),
        "words": term(
            soft_cross_entropy, made @ head, states[:, 1:] @ head, where=counts, weight=0.1
        ),
    }


def feature_richness():
    def rich(classes):
        scores = classes.sigmoid().amax(1)
        return scores / scores.mean().clamp(min=1e-6)

    def squares(s, t):
        return (s - t).square().sum(1)

    def crossed(s, t):
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return bce(s, t.sigmoid(), reduction="none").sum(1)

    weights = [call(rich, teacher.classes[k]) for k in range(3)]
    return {
        "maps": [
            term(squares, module("project")(student.maps[k]), teacher.maps[k], weight=weights[k])
            for k in range(3)
        ],
        "classes": [
            term(crossed, student.classes[k], teacher.classes[k], weight=weights[k])
            for k in range(3)
        ],
    }


def confident_teachers():
    teachers = [teacher, ref("second"), ref("third")]

    def trust(*logits, labels):
        losses = torch.stack([cross_entropy(z, labels) for z in logits])
        return (1 - losses.softmax(0)) / (len(logits) - 1)

    shares = call(trust, *(t.logits for t in teachers), labels=batch.labels)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "kd": [
            term(kl, student.logits, t.logits, temperature=4.0, weight=shares[k])
            for k, t in enumerate(teachers)
        ],
    }


def learning_to_teach():
    def after_practice(net, image, wanted, quiz, labels, rate=0.1):
        def practised(params):
            return kl(net.at(params)(image).logits, wanted, temperature=2.0).mean()

        slopes = torch.func.grad(practised)(dict(net.params))
        tried = {name: p - rate * slopes[name] for name, p in net.params.items()}
        return cross_entropy(net.at(tried)(quiz).logits, labels)

    def itself(values):
        return values

    quiz = batch.quiz, batch.quiz_labels
    tried = call(after_practice, module("student"), batch.image, teacher.logits, *quiz)
    return {
        "kd": term(kl, student.logits, teacher.logits, temperature=2.0, to="student"),
        "labels": term(cross_entropy, student.logits, batch.labels, to="student"),
        "quiz": term(itself, tried, to="teacher"),
    }


def block_reconstruction():
    def started(x):
        return x.detach().requires_grad_()

    def squared_slope(loss, x):
        return torch.autograd.grad(loss.sum(), x)[0].square()

    def weighted(s, t, slopes):
        return (slopes * (s - t).square()).sum((1, 2, 3))

    block = call(started, teacher.tap("first"))
    loss = call(cross_entropy, teacher.patched({"first": block}).logits, batch.labels)
    slopes = call(squared_slope, loss, block)
    return {"block": term(weighted, student.logits, teacher.tap("first"), slopes)}


RECIPES = [
    Recipe("iBOT", "arXiv:2111.07832", image_bert,
           lambda: {"student": fkd.trainable(Patches(4)),
                    "average": fkd.ema("student", decay=0.99)}, two_views,
           "`student.on(...)` is a run on one view, with its mask; the average sees views whole. "
           "The masks are fields of the batch."),
    Recipe("CLIP-KD", "arXiv:2307.12732", two_towers,
           lambda: {"student": fkd.trainable(Towers(4)), "teacher": fkd.frozen(Towers(6)),
                    "project": adapter(lambda: nn.Linear(4, 6))()}, captioned,
           "Contrastive relations, features, and contrasts between a tower of the student and one "
           "of the teacher; the temperature is learned there."),
    Recipe("EAGLE, a drafter of states", "arXiv:2401.15077", drafted,
           lambda: {"teacher": causal()()["teacher"],
                    "drafter": adapter(lambda: Drafter(16))()}, prose,
           "The drafter takes states and the words after them; embeddings and head are the "
           "teacher's, by `param`."),
    Recipe("Feature richness, for detectors", "arXiv:2111.00674", feature_richness,
           lambda: {"student": fkd.trainable(Pyramid(4)), "teacher": fkd.frozen(Pyramid(6)),
                    "project": adapter(lambda: nn.Conv2d(4, 6, 1))()}, images,
           "A place weighs what the teacher's surest class says of it; a weight may have one "
           "number for each place."),
    Recipe("Confidence-aware teachers (CA-MKD)", "arXiv:2201.00007", confident_teachers,
           pictures(second=lambda: fkd.frozen(CNN(8)), third=lambda: fkd.frozen(CNN(5))), images,
           "Each sample trusts the teachers that know its label. The term on features is weighed "
           "in the same way."),
    Recipe("MetaDistil", "arXiv:2106.04570", learning_to_teach,
           lambda: {"student": fkd.trainable(CNN(4)), "teacher": fkd.trainable(CNN(6))},
           practice_and_quiz,
           "The teacher learns what helps the student in a quiz after one step of practice: "
           "`net.at(params)` is the student after it, and the gradient goes through the step. "
           "Each has an optimizer: `train_step(objective, {\"student\": ..., \"teacher\": ...})`."),
    Recipe("BRECQ, one block", "arXiv:2102.05426", block_reconstruction,
           lambda: {"student": fkd.trainable(Quantized(6), unused=["second", "head"]),
                    "teacher": fkd.frozen(CNN(6))}, images,
           "The error of a block, weighed by the squared gradient of the teacher's loss there; one "
           "block after the other is a row of stages. The rounding is learned as well there."),
]  # fmt: skip
