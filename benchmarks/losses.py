"""The losses one by one, eager and compiled, and the traps that the field knows.

    python benchmarks/losses.py
    python benchmarks/losses.py --device cuda --batch 64 --length 512 --vocab 32000
    python benchmarks/losses.py --only nst,rkd
    python benchmarks/losses.py --all                             # every loss of a pair of tensors

Forward and backward by the student's input. `memory` is the peak above what was held before.
The traps are re-stated from the published definitions: NST by the broadcast
`[batch, Cs, Ct, places]` and not by products, FSP with a Python loop over examples, RKD angles
from all `n^3` difference vectors, CRD with memory banks of the whole data set.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from _measure import COLUMNS, Run, arguments, compare, table, write
from torch import Tensor

import fkd
from fkd import losses
from fkd.loops._base.compile import compiled

Case = tuple[Callable[..., Any], list[Tensor]]
"""A loss of tensors, the first of which is the student's."""


def cases(o: argparse.Namespace) -> dict[str, Case]:
    g = torch.Generator(o.device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=o.device)

    b, n, v, h, c, p = o.batch, o.length, o.vocab, o.hidden, o.channels, o.places
    logits = [normal(b, n, v), normal(b, n, v)]
    hidden = [normal(b, n, h), normal(b, n, h)]
    maps = [normal(b, 4, n, n).softmax(-1), normal(b, 4, n, n).softmax(-1)]
    images = [normal(b, c, p, p), normal(b, 2 * c, p, p)]
    same = [images[0], normal(b, c, p, p)]
    pair = [normal(b, c, p, p), normal(b, c, p, p), normal(b, c, p, p), normal(b, c, p, p)]
    rows = [normal(4 * b, h), normal(4 * b, h)]
    classes = [normal(4 * b, 1000), normal(4 * b, 1000)]
    queue = losses.crd_init(4096, 128, device=o.device)

    def crd(s: Tensor, t: Tensor) -> Tensor:
        return losses.crd(s, t, state=queue, dataset_size=50_000)[0]

    def fsp(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return losses.fsp(a, c, b, d, convention="code")

    def tokens(loss: Callable[..., Any]) -> Case:
        return loss, logits

    some: dict[str, Case] = {
        **{n: tokens(getattr(losses, n)) for n in ("kl", "reverse_kl", "jsd", "skew_kl")},
        **{n: tokens(getattr(losses, n)) for n in ("total_variation", "soft_cross_entropy")},
        "alpha_divergence": (lambda s, t: losses.alpha_divergence(s, t, alpha=0.5), logits),
        **{n: (getattr(losses, n), classes) for n in ("dist_inter", "dist_intra")},
        "mse": (losses.mse, hidden),
        "cosine": (losses.cosine, hidden),
        "attention_mse": (losses.attention_mse, maps),
        "attention_kl": (losses.attention_kl, maps),
        "attention_transfer": (losses.attention_transfer, same),
        "similarity_preserving": (losses.similarity_preserving, rows),
        "cka": (losses.cka_linear, rows),
        "pkt": (losses.pkt, rows),
        "nst": (losses.nst, images),
        "nst, broadcast": (nst_broadcast, images),
        "fsp": (fsp, pair),
        "fsp, loop": (fsp_loop, pair),
        "rkd_angle": (losses.rkd_angle, rows),
        "rkd_angle, differences": (rkd_differences, rows),
        "crd": (crd, [normal(b, 128), normal(b, 128)]),
    }
    if not o.all:
        return some
    labels = torch.randint(0, 1000, (4 * b,), generator=g, device=o.device)
    by_kind = {
        "logits": [*classes, labels],
        "map": same,
        "features": rows,
        "embeddings": rows,
        "hidden": hidden,
        "x": hidden,
        "probabilities": maps,
        "preactivation": same,
    }
    sequences = [normal(b, 32, 1000), normal(b, 32, 1000)]
    some |= {
        **{n: (getattr(losses, n), same) for n in ("dist_channel", "dist_spatial")},
        **{n: (getattr(losses, n), sequences) for n in ("multi_level_ot", "sinkhorn_ot")},
    }
    return {**{n: case for n, case in pairwise(by_kind).items() if n not in some}, **some}


def pairwise(by_kind: Mapping[str, list[Tensor]]) -> dict[str, Case]:
    """Every public loss of a student's and a teacher's tensor of the same kind, which its
    arguments are named for, and perhaps of labels, that needs no more than these."""
    found: dict[str, Case] = {}
    for name, loss in vars(losses).items():
        if name.startswith("_") or not inspect.isfunction(loss):
            continue
        parameters = inspect.signature(loss).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty]
        kind = needed[0].partition("student_")[2] if needed else ""
        if kind in by_kind and needed[1:] in ([f"teacher_{kind}"], [f"teacher_{kind}", "labels"]):
            found[name] = (loss, by_kind[kind][: len(needed)])
    return found


def nst_broadcast(student: Tensor, teacher: Tensor) -> Tensor:
    """NST as in common implementations: the products over places are summed by broadcasting."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] * b[:, None]).sum(-1).square().mean((1, 2))

    return kernel(s, s) + kernel(t, t) - 2 * kernel(s, t)


def fsp_loop(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """FSP, one example after the other."""

    def flow(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.flatten(1), y.flatten(1)
        return x @ y.T / x.shape[1]

    values = [(flow(a[i], b[i]) - flow(c[i], d[i])).square().mean() for i in range(a.shape[0])]
    return torch.stack(values)


def rkd_differences(student: Tensor, teacher: Tensor) -> Tensor:
    """RKD angles from the differences of all pairs, `[n, n, features]`, made unit vectors."""

    def angles(x: Tensor) -> Tensor:
        unit = F.normalize(x[None] - x[:, None], dim=2)
        return unit @ unit.mT

    values = F.smooth_l1_loss(angles(student), angles(teacher), reduction="none")
    return values.mean((1, 2))


AGREE = {"nst, broadcast": "nst", "fsp, loop": "fsp", "rkd_angle, differences": "rkd_angle"}


def one(case: Case, *, compile: bool) -> Run:
    loss, inputs = case
    moving = inputs[0].detach().requires_grad_()

    def value(student: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        values = loss(student, *others)
        total = values.value if isinstance(values, fkd.Mean) else values.mean()
        (gradient,) = torch.autograd.grad(total, student)
        return gradient, total.detach()

    fn = compiled(value, {} if compile else None)
    return lambda: fn(moving, *inputs[1:])


def main() -> None:
    sizes = {"batch": 8, "length": 128, "vocab": 8000, "hidden": 256, "channels": 64, "places": 14}
    parser = arguments(__doc__ or "", **sizes)
    parser.add_argument("--only", default="", help="names that begin so, separated by commas")
    parser.add_argument("--all", action="store_true", help="every loss of a pair of tensors")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = {
        name: case
        for name, case in cases(options).items()
        if not options.only or name.startswith(tuple(options.only.split(",")))
    }
    notes = []
    for name in AGREE.keys() & chosen.keys():
        (f, x), (g, y) = chosen[name], chosen[AGREE[name]]
        error = float((f(*x) - g(*y)).abs().max())
        notes.append(f"{name}: values differ from {AGREE[name]} by at most {error:.1e}")
    rows: dict[str, dict[str, Any]] = {}
    for name, case in chosen.items():
        torch._dynamo.reset()
        made = {"compiled": lambda c=case: one(c, compile=True)}
        made["eager"] = lambda c=case: one(c, compile=False)
        found = compare(made, options, baseline="compiled")
        rows |= {f"{name}, {how}": row for how, row in found.items()}
    print("\n".join(notes))
    print(table(rows, {**COLUMNS, "median_s": ".5f"}))
    name = "losses_all" if options.all else "losses"
    write(f"{name}_{options.device}", options, rows, notes)


if __name__ == "__main__":
    main()
