"""Loss heads side by side: time, memory, and share of the bare matrix products' time.

    python benchmarks/head.py                                     # CPU, the target's size
    python benchmarks/head.py --tokens 128 --vocab 2048           # CPU, a smoke run
    python benchmarks/head.py --dtype bfloat16                    # CPU, in half precision
    python benchmarks/head.py --device cuda                       # H200: 8192 x 4096/4096 x 128256
    python benchmarks/head.py --device cuda --student 2048

Forward and backward of one divergence of the teacher and the student, from hidden states to the
gradients of the student's hidden states and head. Every variant has a process of its own and is
timed in turns with the bare products (logits of both models, both gradients), so that its ratio
does not depend on what else the machine does. Peak memory is above inputs and gradients.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _measure import write
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fkd.losses import head
from fkd.losses.head import head_divergence

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


SIZES = {
    "cpu": {"tokens": 2048, "student": 512, "teacher": 1024, "vocab": 32000, "repeats": 3},
    "cuda": {"tokens": 8192, "student": 4096, "teacher": 4096, "vocab": 128256, "repeats": 20},
}


def inputs_of(options: argparse.Namespace, dtype: torch.dtype, frozen: bool = False) -> Inputs:
    g = torch.Generator(options.device).manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=g, device=options.device) * scale).to(dtype)

    s, t = options.student, options.teacher
    weight = normal(options.vocab, s, scale=3 * s**-0.5).requires_grad_(not frozen)
    student = normal(options.tokens, s).requires_grad_()
    return student, weight, normal(options.tokens, t), normal(options.vocab, t, scale=3 * t**-0.5)


def divergence_of(options: argparse.Namespace) -> head.Divergence:
    return {"kl": head.kl, "reverse_kl": head.reverse_kl, "jsd": head.jsd}[options.divergence]()


def by_fkd(options: argparse.Namespace, **knobs: Any) -> Callable[..., Tensor]:
    def loss(x: Tensor, w: Tensor, xt: Tensor, wt: Tensor) -> Tensor:
        knobs.setdefault("chunk_size", options.chunk)
        return head_divergence(x, w, xt, wt, divergence=divergence_of(options), **knobs).value

    return loss


def composite(options: argparse.Namespace) -> Callable[..., Tensor]:
    """The head and a hidden-state term on the same states."""
    target = torch.zeros(options.tokens, options.student, device=options.device)
    return lambda x, w, xt, wt: by_fkd(options)(x, w, xt, wt) + F.mse_loss(x.float(), target)


def formula(options: argparse.Namespace, x: Tensor, w: Tensor, xt: Tensor, wt: Tensor) -> Tensor:
    """The sum over tokens, from float32 log-softmaxes of the product's own dtype."""
    log_q = F.log_softmax((x @ w.T).float(), dim=-1)
    log_p = F.log_softmax((xt @ wt.T).float(), dim=-1)
    if options.divergence == "kl":
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    if options.divergence == "reverse_kl":
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    to_p = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
    return (to_p + F.kl_div(log_m, log_q, reduction="sum", log_target=True)) / 2


def plain(options: argparse.Namespace) -> Callable[..., Tensor]:
    return lambda *inputs: formula(options, *inputs) / options.tokens


def checkpointed(options: argparse.Namespace) -> Callable[..., Tensor]:
    """The rule of TRL's chunked losses: 256 tokens at a time, each chunk checkpointed."""

    def loss(x: Tensor, w: Tensor, xt: Tensor, wt: Tensor) -> Tensor:
        parts = zip(x.split(256), xt.split(256), strict=True)
        chunks = [checkpoint(formula, options, a, w, b, wt, use_reentrant=False) for a, b in parts]
        return torch.stack(chunks).sum() / options.tokens

    return loss


def liger(options: argparse.Namespace, chunked: bool) -> Callable[..., Tensor]:
    labels = torch.zeros(options.tokens, dtype=torch.long, device=options.device)
    beta = {"kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}[options.divergence]
    if chunked:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        base = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta)
        return lambda x, w, xt, wt: base(x, w, xt, wt, labels)
    from liger_kernel.transformers import LigerFusedLinearJSD

    fused = LigerFusedLinearJSD(jsd_beta=beta)
    return lambda x, w, xt, wt: fused(x, w, xt, wt, None)


CPU: dict[str, Callable[[argparse.Namespace], Callable[..., Tensor]]] = {
    "fkd chunked": lambda o: by_fkd(o, strategy="chunked"),
    "fkd chunked, compiled": lambda o: torch.compile(by_fkd(o, strategy="chunked"), fullgraph=True),
    "fkd, frozen head": lambda o: by_fkd(o),
    "fkd + hidden term": composite,
    "torch eager": plain,
    "torch compiled": lambda o: torch.compile(plain(o), fullgraph=True),
    "checkpointed chunks (TRL's rule)": checkpointed,
    "liger chunked base, compiled": lambda o: liger(o, chunked=True),
}
HALF = {
    "fkd chunked, bfloat16 logits": lambda o: by_fkd(
        o, strategy="chunked", logits_dtype=torch.bfloat16
    ),
    "fkd chunked, bfloat16 logits, compiled": lambda o: torch.compile(
        by_fkd(o, strategy="chunked", logits_dtype=torch.bfloat16), fullgraph=True
    ),
}
CUDA = {
    "fkd fused": lambda o: by_fkd(o, strategy="fused"),
    "fkd fused, bfloat16 logits": lambda o: by_fkd(
        o, strategy="fused", logits_dtype=torch.bfloat16
    ),
    "liger fused linear jsd": lambda o: liger(o, chunked=False),
}


def products(inputs: Inputs, frozen: bool, chunk: int) -> None:
    """The floor: what no head can leave out, in chunks that fit."""
    x, w, xt, wt = (t.detach() for t in inputs)
    for a, b in zip(x.split(chunk), xt.split(chunk), strict=True):
        z, _ = a @ w.T, b @ wt.T
        z @ w
        if not frozen:
            z.T @ a


def timed(fn: Callable[[], object], device: str) -> float:
    """Milliseconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    fn()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, options: argparse.Namespace, send: Any) -> None:
    """Time, floor and memory of one variant; sends a row of the table."""
    dtype = getattr(torch, options.dtype)
    inputs = inputs_of(options, dtype, frozen := "frozen" in name)
    loss = {**CPU, **HALF, **CUDA}[name](options)

    def step() -> None:
        inputs[0].grad = inputs[1].grad = None
        loss(*inputs).backward()

    before = peak_bytes(options.device)
    first = timed(step, options.device)
    grads = sum(t.grad.nbytes for t in inputs if t.grad is not None)
    peak = peak_bytes(options.device) - before - grads
    floor_chunk = min(options.tokens, 2048)
    pairs = [
        (
            timed(step, options.device),
            timed(lambda: products(inputs, frozen, floor_chunk), options.device),
        )
        for _ in range(options.repeats)
    ]
    took, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
    row = {"variant": name, "ms": took, "products_ms": floor, "ratio": took / floor}
    row |= {"peak_mb": peak / 1e6, "first_s": first / 1e3, "repeats": options.repeats}
    row |= {"tokens_per_s": 1e3 * options.tokens / took, "share_of_floor": floor / took}
    send.send(row)


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, options, send))
    process.start()
    send.close()
    try:
        row = receive.recv()
    except EOFError:
        row = {"variant": name, "error": "failed; see above"}
    process.join()
    return row


def gradient_error(options: argparse.Namespace, **knobs: Any) -> float:
    """Of the hidden states' gradient on 256 nearly converged rows, against float64."""
    few = argparse.Namespace(**{**vars(options), "tokens": 256})
    dtype = getattr(torch, options.dtype)
    _, _, teacher, weight = inputs_of(few, dtype, frozen=True)
    student = teacher + 0.05 * torch.randn_like(teacher)

    def gradient(dtype: torch.dtype, **knobs: Any) -> Tensor:
        x = student.to(dtype).requires_grad_()
        constants = (t.to(dtype) for t in (weight, teacher, weight))
        head_divergence(x, *constants, divergence=divergence_of(few), **knobs).total.backward()
        assert x.grad is not None
        return x.grad.double()

    exact = gradient(torch.float64, strategy="chunked")
    return float((gradient(dtype, **knobs) - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="float32 on a CPU")
    for name in SIZES["cpu"] | {"chunk": None}:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--divergence", default="kl", choices=["kl", "reverse_kl", "jsd"])
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--name", help="of the result file, without .json; none is written if ''")
    options = parser.parse_args()
    for name, size in SIZES[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, size)
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    half = HALF if options.dtype == "bfloat16" else {}
    names = [*CPU, *half, *(CUDA if options.device == "cuda" else ())]
    if importlib.util.find_spec("liger_kernel") is None:
        names = [n for n in names if not n.startswith("liger")]
    rows = []
    print(f"{'variant':34} {'ms':>9} {'products':>9} {'ratio':>6} {'peak MB':>9} {'first s':>8}")
    for name in options.only or names:
        row = measured(name, options)
        rows.append(row)
        if "error" in row:
            print(f"{name:34} {row['error']}", flush=True)
        else:
            print(f"{name:34} {row['ms']:9.1f} {row['products_ms']:9.1f} {row['ratio']:6.2f} "
                  f"{row['peak_mb']:9.0f} {row['first_s']:8.1f}", flush=True)  # fmt: skip
    error = gradient_error(options)
    print(f"gradient error on nearly converged rows: {error:.1e}")
    options.threads, options.clock = torch.get_num_threads(), "wall"
    notes = [f"gradient error on nearly converged rows: {error:.1e}"]
    half = "_bf16" if half and options.device == "cpu" else ""
    write(f"head_{options.divergence}{half}_{options.device}", options, rows, notes)


if __name__ == "__main__":
    main()
