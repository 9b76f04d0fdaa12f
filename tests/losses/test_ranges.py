"""Numbers outside their documented range are refused; the ends that belong to it are not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fkd.losses
from fkd.losses._shared import checks

from .case import Case
from .table import CASES

NAN, INF = float("nan"), float("inf")
POSITIVE = (0, 0.0, -1.0, NAN)
WHOLE = (0, -1, 1.5, NAN)

# By loss and argument: what is outside, and what is at the edge of the inside.
RANGES: dict[tuple[str, str], tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    ("ofa", "gamma"): ((0.9, NAN, INF), (1,)),
    ("activation_boundary", "margin"): ((-0.1, NAN), (0,)),
    ("cka", "bandwidth"): (POSITIVE, (0.1,)),
    ("cka_rbf", "bandwidth"): (POSITIVE, (0.1,)),
    ("crd", "dataset_size"): (POSITIVE, (1,)),
    ("dino", "momentum"): ((-0.1, 1.1, NAN), (0, 1)),
    ("renyi", "alpha"): (POSITIVE, (0.1,)),
    ("adaptive_kl", "head"): ((0, 1, NAN), (0.01, 0.99)),
    ("adaptive_kl_weight", "head"): ((0, 1, NAN), (0.01, 0.99)),
    ("jsd", "beta"): ((-0.1, 1.1, NAN), (0, 1)),
    ("skew_kl", "skew"): ((-0.1, 1.1, NAN), (0, 1)),
    ("skew_reverse_kl", "skew"): ((-0.1, 1.1, NAN), (0, 1)),
    ("cat_kd", "size"): (WHOLE, (1, None)),
    ("nst", "degree"): (WHOLE, (1, 3)),
    ("mgskd_angle", "vertices"): (WHOLE, (1,)),
    ("mgskd_angle", "neighbours"): (WHOLE, (1,)),
    ("smooth_l1", "beta"): (POSITIVE, (1e-9,)),
    ("cross_entropy", "label_smoothing"): ((-0.1, 1, NAN), (0, 0.99)),
    ("hard_label", "label_smoothing"): ((-0.1, 1, NAN), (0, 0.99)),
    ("focal", "gamma"): ((-0.1, NAN, INF), (0,)),
    ("log_distance", "exponent"): ((1, 0, NAN, INF), (1.1,)),
    ("log_distance", "eps"): (POSITIVE, (1e-20,)),
    ("skd_direction", "ridge"): (POSITIVE, (0.01,)),
    ("correlation_congruence", "gamma"): (POSITIVE, (0.01,)),
    ("correlation_congruence", "order"): (WHOLE, (1,)),
    ("pkt", "eps"): (POSITIVE, (1e-9,)),
    ("logistic_ranking", "scale"): (POSITIVE, (0.1,)),
    ("kdsvd", "rank"): (WHOLE, (1,)),
    ("kdsvd", "extra"): ((-1, 0.5, NAN), (0,)),
    ("corrected_teacher", "threshold"): ((-0.1, 1, NAN), (0, 0.99)),
    ("replace_wrong", "correct"): ((0, 1, NAN), (0.01, 0.99)),
    ("flsw_temperature", "gamma"): (POSITIVE, (0.5,)),
    ("flsw_temperature", "base"): (POSITIVE, (0.5,)),
    ("cwsm_temperature", "base"): (POSITIVE, (0.5,)),
    ("ctkd_temperature", "start"): (POSITIVE, (0.5,)),
    ("sinkhorn", "epsilon"): (POSITIVE, (0.1,)),
    ("sinkhorn", "iterations"): (WHOLE, (1,)),
    ("bert_emd", "epsilon"): (POSITIVE, (0.1,)),
    ("bert_emd", "iterations"): (WHOLE, (1,)),
    ("multi_level_ot", "k"): (WHOLE, (1,)),
    ("sinkhorn_ot", "k"): (WHOLE, (1,)),
    ("sinkhorn_ot", "entropy"): (POSITIVE, (0.1,)),
    ("sinkhorn_ot", "iterations"): (WHOLE, (1,)),
}
ROWS: dict[str, Case] = {c.function.__name__: c for c in reversed(CASES)}


@pytest.mark.plain
@pytest.mark.parametrize("loss, name", RANGES, ids=str)
def test_range(loss: str, name: str) -> None:
    case, (outside, inside) = ROWS[loss], RANGES[loss, name]
    for value in outside:
        with pytest.raises(ValueError, match="^" + re.escape(f"{loss}: {name} {value}; a ")):
            case.loss(*case.make(), **{**case.kwargs, name: value})
    for value in inside:
        case.loss(*case.make(), **{**case.kwargs, name: value})


ONES = torch.ones(2, 3)
INDEX = torch.tensor([0, 1])
HALF = ONES / 2
OTHERS: list[tuple[Callable[..., Any], str, tuple[Any, ...], tuple[Any, ...]]] = [
    (lambda x: fkd.losses.top_k(ONES, 2, temperature=x), "top_k: temperature", POSITIVE, (1,)),
    (lambda x: fkd.losses.sample(ONES, HALF, temperature=x), "sample: temperature", POSITIVE, (1,)),
    (lambda x: fkd.losses.sample(ONES, HALF, proposal=x), "sample: proposal", POSITIVE, (1,)),
    (
        lambda x: fkd.losses.least_wrong(ONES, INDEX, fraction=x), "least_wrong: fraction",
        (-0.1, 1.1, NAN), (0, 1),
    ),
    (
        lambda x: fkd.losses.virtual_teacher(INDEX, 3, correct=x), "virtual_teacher: correct",
        (0, 1, NAN), (0.01, 0.99),
    ),
    (
        lambda x: fkd.losses.sinkhorn_plan(torch.ones(2, 2), HALF[0, :2], HALF[0, :2], epsilon=x),
        "sinkhorn_plan: epsilon", POSITIVE, (0.1,),
    ),
    (
        lambda x: fkd.losses.sinkhorn_plan(
            torch.ones(2, 2), HALF[0, :2], HALF[0, :2], iterations=x
        ),
        "sinkhorn_plan: iterations", WHOLE, (1,),
    ),
    (lambda x: fkd.losses.queue_init(x, 2), "queue_init: size", WHOLE, (1,)),
    (lambda x: fkd.losses.crd_init(x, 2), "crd_init: size", WHOLE, (1,)),
    (
        lambda x: fkd.losses.mlkd_instance(ONES, ONES, temperatures=(1.0, x)),
        "mlkd_instance: temperatures", POSITIVE, (1,),
    ),
    (
        lambda x: fkd.losses.hcl(torch.ones(1, 2, 4), torch.ones(1, 2, 4), levels=(2, x)),
        "hcl: levels", WHOLE, (1,),
    ),
]  # fmt: skip


@pytest.mark.plain
@pytest.mark.parametrize("call, start, outside, inside", OTHERS, ids=[row[1] for row in OTHERS])
def test_range_of_what_has_no_row(call, start, outside, inside) -> None:
    for value in outside:
        with pytest.raises(ValueError, match="^" + re.escape(f"{start} {value}; a ")):
            call(value)
    for value in inside:
        call(value)


SOFT: list[tuple[Callable[..., Any], str]] = [
    (lambda m: fkd.losses.least_wrong(ONES, INDEX, where=m[:, 0]), "least_wrong: where"),
    (
        lambda m: fkd.losses.enqueue(fkd.losses.queue_init(4, 3), ONES, where=m[:, 0]),
        "enqueue: where",
    ),
    (lambda m: fkd.losses.fgd_weight(torch.ones(2, 3, 4), (2, 2), valid=m), "fgd_weight: valid"),
    (lambda m: fkd.losses.listwise_kl(ONES, ONES, candidates=m), "listwise_kl: candidates"),
    (lambda m: fkd.losses.mix_layers(ONES, torch.ones(3, 3), allowed=m), "mix_layers: allowed"),
    (lambda m: fkd.losses.alp(ONES, torch.ones(3, 3), allowed=m), "alp: allowed"),
    (lambda m: fkd.losses.pool_spans(torch.ones(3, 4), m), "pool_spans: spans"),
    (
        lambda m: fkd.losses.sinkhorn(torch.ones(2, 3, 1), torch.ones(2, 2, 1), student_where=m),
        "sinkhorn: student_where",
    ),
    (
        lambda m: fkd.losses.sinkhorn(torch.ones(2, 2, 1), torch.ones(2, 3, 1), teacher_where=m),
        "sinkhorn: teacher_where",
    ),
]  # fmt: skip


@pytest.mark.plain
@pytest.mark.parametrize("call, start", SOFT, ids=[row[1] for row in SOFT])
def test_other_masks_are_neither_floating_nor_broadcast(call, start) -> None:
    call(ONES.bool())
    call(ONES.long())
    with pytest.raises(ValueError, match=f"^{start} has dtype torch.float32"):
        call(HALF)
    with pytest.raises(ValueError, match=f"^{start} has shape"):
        call(ONES.bool()[:1, :2])


def test_tensors_are_not_looked_at() -> None:
    checks.positive("loss", x=torch.tensor(-1.0), y=None)
    checks.between("loss", 0, 1, x=torch.tensor(-1.0))


def test_an_interval_is_shown_with_its_ends() -> None:
    with pytest.raises(ValueError, match=r"loss: x 1; a number in \[0, 1\) is expected\."):
        checks.between("loss", 0, 1, ends="[)", x=1)
    with pytest.raises(ValueError, match=r"loss: n 1\.5; a whole number, 2 or more, is expected\."):
        checks.whole("loss", 2, n=1.5)
