"""A mask finer than the values of a loss: of the places of a map, of the tokens of a sequence."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import bert_emd, cwd, kl, mgskd_angle


class Maps(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return {"map": self.layer(x)}


def images() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(4, 5, 6, generator=g) < 0.5
    mask[1] = False  # an image without a place that counts
    return {"x": torch.randn(4, 2, 5, 6, generator=g), "mask": mask}


def objective(where=batch.mask):
    return fkd.Objective(
        {"cwd": term(cwd, student.map, teacher.map, where=where)},
        student=fkd.trainable(Maps(0)),
        teacher=fkd.frozen(Maps(1)),
    )


def test_an_image_counts_where_any_of_its_places_does():
    data, distilled = images(), objective()
    parts = distilled.init()
    loss, aux = distilled(parts, data)
    s, t = Maps(0)(data["x"])["map"], Maps(1)(data["x"])["map"]
    values = cwd(s, t, where=data["mask"])
    assert aux.terms["cwd"].count == 3 and values[1] == 0
    torch.testing.assert_close(loss, values.sum() / 3)


def test_the_check_counts_images():
    assert "3 of 4" in str(fkd.check(objective(), images()))


@pytest.mark.plain
def test_a_mask_that_fits_no_place_is_refused():
    data = images()
    data["mask"] = data["mask"][:, :, :-1]
    with pytest.raises(ValueError, match=r"cwd: where has shape \(4, 5, 5\); \(4,\) is expected"):
        fkd.check(objective(), data)


class Tokens(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(2, 3)

    def forward(self, x):
        return {"hidden": self.layer(x), "layers": self.layer(x)[:, :, None]}


@pytest.mark.parametrize(("loss", "output"), [(mgskd_angle, "hidden"), (bert_emd, "layers")])
def test_a_sequence_counts_where_any_of_its_tokens_does(loss, output):
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:], mask[2] = False, False
    data = {"x": torch.randn(3, 6, 2, generator=g), "mask": mask}
    distilled = fkd.Objective(
        {"loss": term(loss, student[output], teacher[output], where=batch.mask)},
        student=fkd.trainable(Tokens(0)),
        teacher=fkd.frozen(Tokens(1)),
    )
    parts = distilled.init()
    total, aux = distilled(parts, data)
    s, t = Tokens(0)(data["x"])[output], Tokens(1)(data["x"])[output]
    assert aux.terms["loss"].count == 2
    torch.testing.assert_close(total, loss(s, t, where=mask)[:2].mean())


@pytest.mark.plain
def test_a_loss_without_where_is_still_given_one_mask_a_value():
    """It does not know of tokens, so they cannot have been left out inside."""

    def by_sequence(s, t):
        return kl(s, t).mean(-1)

    distilled = fkd.Objective(
        {"loss": term(by_sequence, student.hidden, teacher.hidden, where=batch.mask)},
        student=fkd.trainable(Tokens(0)),
        teacher=fkd.frozen(Tokens(1)),
    )
    data = {"x": torch.randn(3, 6, 2), "mask": torch.ones(3, 6, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"where \(3, 6\) must have the shape of the values"):
        fkd.check(distilled, data)
