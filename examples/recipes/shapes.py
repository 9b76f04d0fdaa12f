"""Lists of maps, sounds of different lengths, and modules that take the place of others."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import fkd
from fkd import batch, call, module, student, teacher, term
from fkd.losses import cross_entropy, kl, pearson

from ._recipe import Recipe
from ._small import CNN, adapter, images


class Pyramid(nn.Module):
    """Three maps of strides 1, 2 and 4, and class logits at every place of each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Conv2d(3 if k == 0 else channels, channels, 3, stride=min(k + 1, 2), padding=1)
            for k in range(3)
        )
        self.head = nn.Conv2d(channels, 5, 1)

    def forward(self, image: Tensor) -> dict[str, Any]:
        maps = []
        for level in self.levels:
            image = torch.relu(level(image))
            maps.append(image)
        return {"maps": maps, "classes": [self.head(x) for x in maps]}


class Listener(nn.Module):
    """Frames of sound to logits of letters, of which 0 is the blank."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frames = nn.Conv1d(3, width, 3, padding=1)
        self.letters = nn.Linear(width, 6)

    def forward(self, sound: Tensor) -> Tensor:
        return self.letters(torch.tanh(self.frames(sound.mT)).mT)


class Theseus(nn.Module):
    """A trained network, some of whose parts are replaced by smaller ones, drawn anew each step."""

    def __init__(self, trained: CNN) -> None:
        super().__init__()
        self.trained = copy.deepcopy(trained).requires_grad_(requires_grad=False)
        channels = trained.head.in_features
        self.first = nn.Sequential(nn.Conv2d(3, channels, 1), nn.ReLU())
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, image: Tensor, rate: Tensor) -> Tensor:
        first, second = (torch.rand((), device=image.device) < rate for _ in range(2))
        x = torch.where(first, self.first(image), self.trained.first(image))
        x = torch.where(second, self.second(x), self.trained.second(x))
        return self.trained.head(torch.relu(x).mean((2, 3)))


class Elastic(nn.Module):
    """A network that also runs with fewer of its layers, and with fewer channels inside each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.widen = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 1) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Conv2d(2 * channels, channels, 1) for _ in range(3))
        self.head = nn.Linear(channels, 5)

    def forward(self, image: Tensor, depth: int = 3, width: int | None = None) -> Tensor:
        x = self.stem(image)
        for widen, narrow in list(zip(self.widen, self.narrow, strict=True))[:depth]:
            inner = nn.functional.conv2d(x, widen.weight[:width], widen.bias[:width])
            x = x + nn.functional.conv2d(inner.relu(), narrow.weight[:, :width], narrow.bias)
        return self.head(x.mean((2, 3)))


def sounds() -> dict[str, Tensor]:
    """Two sounds of 7 and 5 frames, and their letters; what comes after is padding."""
    sound = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    sound[1, 5:] = 0.0
    return {
        "sound": sound,
        "lengths": torch.tensor([7, 5]),
        "letters": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        "letter_counts": torch.tensor([3, 2]),
    }


def replacing() -> dict[str, Tensor]:
    return images() | {"rate": torch.tensor(1.0)}  # all parts are replaced by then


def every_level():
    project = module("project")
    return {
        "maps": [term(pearson, project(student.maps[k]), teacher.maps[k]) for k in range(3)],
        "classes": [
            term(
                kl,
                call(torch.movedim, student.classes[k], 1, -1),
                call(torch.movedim, teacher.classes[k], 1, -1),
                weight=1 / 3,
            )
            for k in range(3)
        ],
    }


def spoken():
    def ctc(logits, letters, lengths, counts):
        log_q = logits.log_softmax(-1).movedim(0, 1)
        return torch.nn.functional.ctc_loss(
            log_q, letters, lengths, counts, reduction="none", zero_infinity=True
        )

    def sounding(sound, lengths):
        return torch.arange(sound.shape[1], device=sound.device) < lengths[:, None]

    heard = call(sounding, batch.sound, batch.lengths)
    return {
        "letters": term(ctc, student.logits, batch.letters, batch.lengths, batch.letter_counts),
        "frames": term(kl, student.logits, teacher.logits, temperature=2.0, where=heard),
    }


def module_replacing():
    return {"labels": term(cross_entropy, student.logits, batch.labels)}


def shrinking():
    def taught(weight, **size):  # a part of the student, by the whole that was trained before
        smaller = student.on(batch.image, **size).logits
        kd = term(kl, smaller, teacher.logits, weight=weight)
        return [kd, term(cross_entropy, smaller, batch.labels, weight=weight)]

    depth, width = (fkd.schedules.piecewise({0: 0.0, start: 1.0}) for start in (0, 400))
    return {
        "whole": term(cross_entropy, student.logits, batch.labels),
        "depth": {f"{d} layers": taught(depth, depth=d) for d in (2, 1)},
        "width": {f"{w} channels": taught(width, width=w, depth=2) for w in (6, 4)},
    }


RECIPES = [
    Recipe("Every level of a pyramid", "arXiv:2207.02039", every_level,
           lambda: {"student": fkd.trainable(Pyramid(4)), "teacher": fkd.frozen(Pyramid(6)),
                    "project": adapter(lambda: nn.Conv2d(4, 6, 1))()}, images,
           "A list of maps is a list of terms; one projection for all levels. Masks of places: "
           "`where=` of shape `[batch, height, width]` for each level."),
    Recipe("Speech with CTC", "ICML 2006 (Graves et al.)", spoken,
           lambda: {"student": fkd.trainable(Listener(4)), "teacher": fkd.frozen(Listener(8))},
           sounds, "Frames after the end of a sound count nowhere; letters and frames need not be "
           "aligned. Any function is a loss, `ctc_loss` as well."),
    Recipe("BERT-of-Theseus", "arXiv:2002.02925", module_replacing,
           lambda: {"student": fkd.trainable(Theseus(CNN(4)), training=True)}, replacing,
           "`prepare` sets the rate from `state.step`, from 0.3 up to 1, and a second stage "
           "(`fkd.stages`) trains the smaller parts alone. The draws come from the step's seed, so "
           "that a resumed run repeats them."),
    Recipe("Once for all, progressive shrinking", "arXiv:1908.09791", shrinking,
           lambda: {"student": fkd.trainable(Elastic(4)), "teacher": fkd.frozen(Elastic(4))},
           images, "Parts of one network: a run with fewer layers is `student.on(image, depth=2)`. "
           "Depth first, then width as well; as stages with optimizers of their own, "
           "`fkd.stages`. There the parts are drawn for each step, channels sorted by importance "
           "(`fkd.interop.transformers.cut` keeps those)."),
]  # fmt: skip
