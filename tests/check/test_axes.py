"""Maps whose shape does not say where the features are: the layers that made them do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import attention_transfer, cosine, cross_entropy, cwd, kl, mse


class Segments(nn.Module):
    """Logits of every place, with the classes second, or last."""

    def __init__(self, classes: int, *, last: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.last = last
        self.head = nn.Linear(8, classes) if last else nn.Conv2d(8, classes, 1)

    def forward(self, image):
        x = self.stem(image)
        return self.head(x.movedim(1, -1)) if self.last else self.head(x)


def checked(classes: int, *terms: fkd.Term, last: bool = False) -> fkd.CheckReport:
    objective = fkd.Objective(
        [*terms, term(mse, student.logits, teacher.logits)],
        student=fkd.trainable(Segments(classes, last=last)),
        teacher=fkd.frozen(Segments(classes, last=last)),
    )
    labels = torch.randint(classes, (2, 6, 4))
    return fkd.check(objective, {"image": torch.randn(2, 3, 6, 4), "labels": labels})


PAIR = student.logits, teacher.logits
STEM = student.tap("stem"), teacher.tap("stem")
MOVED = tuple(ref.movedim(1, -1) for ref in PAIR)


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_classes_on_the_second_axis_are_refused(classes):
    second = r"student.logits \(2, ., 6, 4\) has its .* second axis.*student.logits.movedim\(1, -1"
    for wrong in (term(kl, *PAIR), term(cross_entropy, student.logits, batch.labels)):
        with pytest.raises(fkd.ObjectiveError, match=second):
            checked(classes, wrong)
    with pytest.raises(fkd.ObjectiveError, match=r"tap\('stem'\) \(2, 8, 6, 4\) has .* second"):
        checked(classes, term(cosine, *STEM))
    assert checked(classes, term(cwd, *PAIR), term(attention_transfer, *STEM)).rows
    assert checked(classes, term(cross_entropy, MOVED[0], batch.labels)).rows


@pytest.mark.parametrize("classes", [5, 6])
def test_features_on_the_last_axis_are_refused_for_maps(classes):
    assert checked(classes, term(kl, *MOVED)).rows
    assert checked(classes, term(kl, *PAIR), term(cwd, *STEM), last=True).rows
    with pytest.raises(fkd.ObjectiveError, match=r"cwd: student.logits .* last axis.*movedim\(-1"):
        checked(classes, term(cwd, *PAIR), last=True)
    with pytest.raises(fkd.ObjectiveError, match=r"cwd: student.logits.movedim\(1, -1\) .* last"):
        checked(classes, term(cwd, *MOVED))
    with pytest.raises(fkd.ObjectiveError, match=r"kl: student.logits.movedim\(-1, 1\) .* second"):
        checked(classes, term(kl, *(ref.movedim(-1, 1) for ref in PAIR)), last=True)


def test_a_mask_or_labels_say_that_the_classes_are_last():
    logits, mask = torch.randn(2, 6, 4, 4), torch.ones(2, 6, 4, dtype=torch.bool)
    assert kl(logits, logits, where=mask).shape == (2, 6, 4)
    assert cross_entropy(logits, torch.zeros(2, 6, 4, dtype=torch.long)).shape == (2, 6, 4)
