"""Laws of the losses for detectors."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import fbkd_attention, fgd_attention, fgd_focal, fgd_weight, irg_transformation


def test_every_object_weighs_the_same_and_so_does_the_background():
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 3.0], [4.2, 4.7, 4.9, 4.9]]])
    weight = fgd_weight(boxes, (6, 5), foreground=2.0, background=0.5)
    torch.testing.assert_close(weight[0, :3, :2].sum(), torch.tensor(2.0))
    torch.testing.assert_close(weight[0, 4, 4], torch.tensor(2.0))  # smaller than one cell
    torch.testing.assert_close(weight.sum(), torch.tensor(2.0 + 2.0 + 0.5))


def test_the_smallest_of_overlapping_boxes_counts():
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 2.0, 2.0]]])
    weight = fgd_weight(boxes, (4, 4))
    assert weight[0, 1, 1] == 1.0 and weight[0, 0, 0] == 1 / 16


def test_padding_boxes_do_not_count():
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 9.0, 9.0]]])
    one = fgd_weight(boxes[:, :1], (3, 3))
    assert torch.equal(fgd_weight(boxes, (3, 3), valid=torch.tensor([[1, 0]])), one)


def test_no_boxes_is_background_only():
    weight = fgd_weight(torch.zeros(2, 1, 4), (2, 2), valid=torch.zeros(2, 1).bool())
    torch.testing.assert_close(weight, torch.full((2, 2, 2), 0.5 / 4))


def test_focal_of_uniform_attention_is_the_weighted_square():
    torch.manual_seed(0)
    t = torch.randn(2, 3, 4).sign()  # magnitudes are equal
    s, w = torch.randn(2, 3, 4), torch.rand(2, 4)
    expected = ((s - t).square() * w[:, None]).sum((1, 2))
    torch.testing.assert_close(fgd_focal(s, t, place_weight=w), expected)


def test_attention_does_not_see_signs_or_fbkd_magnitudes():
    torch.manual_seed(0)
    t = torch.randn(2, 3, 4)
    assert fgd_attention(-t, t).max() == 0
    # A constant added to all magnitudes changes what FBKD compares, and not a softmax.
    s = t + 2 * t.sign()
    assert fbkd_attention(s, t).min() > 1
    torch.testing.assert_close(fgd_attention(s, t), torch.zeros(2), atol=1e-5, rtol=0)


def test_transformation_is_blind_to_scale_and_shift():
    torch.manual_seed(0)
    a, b = torch.randn(5, 6), torch.randn(5, 6)
    values = irg_transformation(a, 3 * a + 1, b, 3 * b + 1)
    torch.testing.assert_close(values, torch.zeros(5), atol=1e-12, rtol=0)
    still = irg_transformation(a, b, a, b)
    assert torch.equal(still, torch.zeros(5))


@pytest.mark.plain
def test_weights_must_cover_the_map():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="place_weight"):
        fgd_focal(x, x, place_weight=torch.ones(2, 3))


def test_layers_of_a_model_must_agree():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="student_second"):
        irg_transformation(x, x, x[:, :2], x)


@pytest.mark.plain
def test_batches_must_agree():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="same batch size"):
        irg_transformation(x, x[:1], x, x[:1])


def test_the_boxes_of_the_code_have_one_more_row_and_column():
    boxes = torch.tensor([[[0.5, 0.0, 1.5, 1.0]]])  # touches columns 0 and 1 of row 0
    inside = fgd_weight(boxes, (4, 5), background=0.0) > 0
    assert inside[0].nonzero().tolist() == [[0, 0], [0, 1]]
    code = fgd_weight(boxes, (4, 5), background=0.0, convention="code")
    assert (code[0, :2, :3] == 1 / 6).all() and code.sum() == pytest.approx(1.0)
    edge = fgd_weight(torch.tensor([[[3.0, 2.0, 5.0, 4.0]]]), (4, 5), convention="code")
    assert (edge[0, 2:, 3:] == 1 / 9).all()  # the area is that of the whole box


@pytest.mark.plain
def test_a_convention_is_one_of_two():
    with pytest.raises(ValueError, match="fgd_weight: convention is 'mmdet'; one of"):
        fgd_weight(torch.ones(1, 1, 4), (2, 2), convention="mmdet")
