"""Models from the inside: patched, differentiated by their inputs, or their own teachers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fkd
from fkd import batch, call, module, stop_gradient, student, teacher, term
from fkd.losses import cosine, cross_entropy, jacobian_matching, kl, mse

from ._recipe import Recipe
from ._small import CNN, adapter, images, pictures, texts, words


class Expanded(CNN):
    """A CNN whose last map goes through an expansion to twice the teacher's channels and back."""

    def __init__(self, channels: int, teacher_channels: int) -> None:
        super().__init__(channels)
        self.expand = nn.Conv2d(channels, 2 * teacher_channels, 1)
        self.second = nn.Sequential(self.second, Back(self.expand, channels))


class Back(nn.Module):
    """`x + contract(expand(x))`, linear, and so one convolution with the next layer at the end."""

    def __init__(self, expand: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.expand = expand
        self.contract = nn.Conv2d(expand.out_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.contract(self.expand(x))


class Exits(CNN):
    """A CNN with a classifier at each stage."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.early = nn.Linear(channels, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:  # pyright: ignore
        out = super().forward(image)
        one, two = out.maps
        return {"early": self.early(one.mean((2, 3))), "logits": out.logits, "one": one, "two": two}


class Branches(nn.Module):
    """Two heads on one body, and a gate that weighs them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(channels, 5) for _ in range(2))
        self.gate = nn.Linear(channels, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(image).mean((2, 3))
        return {"heads": torch.stack([head(x) for head in self.heads], 1), "gate": self.gate(x)}


def function_consistent():
    into, back = module("into"), module("back")
    by_teacher = teacher.patched({"first": into(student.tap("first"))})
    by_student = student.patched({"first": back(teacher.tap("first"))})
    last = [call(torch.movedim, m.maps[-1], 1, -1) for m in (by_teacher, teacher)]
    first = [call(torch.movedim, x, 1, -1) for x in (into(student.maps[0]), teacher.maps[0])]
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
        "appearance": term(mse, *first, weight=5.0),
        "function": term(mse, *last, weight=5.0),
        "teacher's lens": term(kl, by_teacher.logits, teacher.logits, temperature=4.0),
        "student's lens": term(kl, by_student.logits, teacher.logits, temperature=4.0),
    }


def interchange():
    def swapped(states, mask):  # the first third of a text gets the states of the next one's
        place = torch.arange(states.shape[1], device=states.device)
        both = mask.bool() & mask.roll(1, 0).bool() & (place < states.shape[1] // 3)
        return torch.where(both[..., None], states.roll(1, 0), states)

    mask = batch.attention_mask
    s, t = (
        model.patched({f"bert.encoder.layer.{i}": call(swapped, model.hidden_states[i + 1], mask)})
        for model, i in ((student, 0), (teacher, 1))
    )
    return {
        "mlm": term(cross_entropy, student.logits, batch.labels, weight=0.25),
        "kd": term(kl, student.logits, teacher.logits, where=mask, weight=0.25),
        "cosine": term(
            cosine, student.hidden_states[-1], teacher.hidden_states[-1], where=mask, weight=0.25
        ),
        "causal": term(kl, s.logits, t.logits, where=mask, weight=0.25),
    }


def sobolev():
    def slope(model, image, logits):
        chosen = logits.argmax(-1, keepdim=True)
        return torch.func.grad(lambda x: model(x).logits.gather(-1, chosen).sum())(image)

    slopes = [call(slope, module(n), batch.image, teacher.logits) for n in ("student", "teacher")]
    return {
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
        "slopes": term(jacobian_matching, *slopes),
    }


def boundary():
    def towards(model, image, labels, target, rate=0.3, eps=0.01, steps=10):
        def gap(x):
            logits = model(x).logits
            own, other = (logits.gather(-1, c[:, None])[:, 0] for c in (labels, target))
            return (own - other).sum(), own - other

        for _ in range(steps):
            slope, (_, each) = torch.func.grad_and_value(gap, has_aux=True)(image)
            far = (each + eps).clamp(min=0) / slope.square().sum((1, 2, 3)).clamp(min=1e-12)
            image = image - rate * far[:, None, None, None] * slope
        return image

    target = call(
        lambda z, y: z.scatter(-1, y[:, None], -torch.inf).argmax(-1), teacher.logits, batch.labels
    )
    moved = stop_gradient(call(towards, module("teacher"), batch.image, batch.labels, target))
    right = call(lambda z, y: z.argmax(-1) == y, teacher.logits, batch.labels)
    mine, theirs = (module(n)(moved).logits for n in ("student", "teacher"))
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "kd": term(kl, student.logits, teacher.logits, temperature=3.0),
        "boundary": term(kl, mine, theirs, temperature=3.0, where=right),
    }  # fmt: skip


def one_to_many():
    def segments(x, n):
        return x.movedim(1, -1).unflatten(-1, (n, -1))

    def repeated(x, n):
        return x.movedim(1, -1).unsqueeze(-2).expand(*[-1] * 3, n, -1)

    mine = call(segments, student.tap("expand"), 2)
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "segments": term(mse, mine, call(repeated, teacher.maps[-1], 2), weight=2.0),
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
    }


def own_teacher():
    deep = stop_gradient(student.logits)
    first, last = (call(torch.movedim, x, 1, -1) for x in (student.one, student.two))
    return {
        "labels": term(cross_entropy, student.logits, batch.labels),
        "early labels": term(cross_entropy, student.early, batch.labels, weight=0.7),
        "kd": term(kl, student.early, deep, temperature=3.0, weight=0.3),
        "features": term(mse, first, stop_gradient(last), weight=0.03),
    }


def ensemble():
    heads = student.heads
    together = call(
        lambda heads, gate: (heads * gate.softmax(-1)[..., None]).sum(1), heads, student.gate
    )
    return {
        "ensemble": term(cross_entropy, together, batch.labels),
        "heads": [term(cross_entropy, heads[:, i], batch.labels) for i in range(2)],
        "kd": [term(kl, heads[:, i], stop_gradient(together), temperature=3.0) for i in range(2)],
    }


BRIDGES = {"into": adapter(lambda: nn.Conv2d(4, 6, 1)), "back": adapter(lambda: nn.Conv2d(6, 4, 1))}

RECIPES = [
    Recipe("Function-consistent distillation (FCFD)", "ICLR 2023 (Liu et al.)",
           function_consistent, pictures(**BRIDGES), images,
           "The student's features go on through the teacher's layers, and the teacher's through "
           "the student's; there one path is drawn for a step, and bridges are deeper."),
    Recipe("Interchange interventions (DIITO)", "arXiv:2112.02505", interchange, texts(16), words,
           "Both models compute on, with some states of another text inside. The published masks "
           "are drawn: fields of the batch."),
    Recipe("Jacobian matching", "arXiv:1803.00443", sobolev, pictures(), images,
           "A model handed to a function can be differentiated by its inputs."),
    Recipe("Boundary supporting samples (BSS)", "arXiv:1805.05532", boundary, pictures(), images,
           "Images on the way to the teacher's second choice, where its decision changes; there "
           "the class is drawn by its probability."),
    Recipe("N-to-one matching (NORM)", "ICLR 2023 (Liu et al.)", one_to_many,
           lambda: {"student": fkd.trainable(Expanded(4, 6)), "teacher": fkd.frozen(CNN(6))},
           images, "Each of N segments of an expanded map meets the teacher's; the expansion is "
           "linear and is merged into the next layer at the end."),
    Recipe("Be your own teacher", "arXiv:1905.08094", own_teacher,
           lambda: {"student": fkd.trainable(Exits(4))}, images,
           "The deepest classifier teaches the earlier ones; no other model."),
    Recipe("Ensemble on the fly (ONE)", "arXiv:1806.04606", ensemble,
           lambda: {"student": fkd.trainable(Branches(4))}, images,
           "Gated heads are the teacher of each; one of them is kept."),
]  # fmt: skip
