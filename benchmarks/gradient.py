"""Three ways to differentiate a compiled objective, and what each does to autograd.Function.

    python benchmarks/gradient.py --hidden 384 --shape 8x128
    python benchmarks/gradient.py --device cuda --hidden 768 --shape 8x512 --bf16

- `func in the graph`: torch.func.grad_and_value inside torch.compile;
- `autograd in the graph`: torch.autograd.grad inside torch.compile (what fkd does);
- `autograd outside`: a compiled forward pass, whose compiled backward autograd calls.

A minimal case says for each whether the backward of an autograd.Function is used: its forward
is x^2, its backward claims 100 x. The gradient at 1 is 100 if it is used and 2 if it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _measure import COLUMNS, Run, arguments, compare, table, write
from bert import LAYERS, Setting, objective
from torch import Tensor
from torch.utils import _pytree as pytree

from fkd.loops._base.compile import compiled


class Claims(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return cotangents[0] * 100 * ctx.saved_tensors[0]


Loss = Callable[[Any, Any], Tensor]
"""`(tree to differentiate by, the rest) -> loss`."""


def func_inside(loss: Loss, params: Any, rest: Any) -> Run:
    def gradient(params: Any, rest: Any) -> Any:
        return torch.func.grad_and_value(loss)(params, rest)

    graph = compiled(gradient, {})

    def run() -> Any:
        with torch.no_grad():
            grads, value = graph(params, rest)
        return pytree.tree_leaves(grads), value

    return run


def autograd_inside(loss: Loss, params: Any, rest: Any) -> Run:
    moving = pytree.tree_map(lambda x: x.detach().requires_grad_(), params)

    def gradient(params: Any, rest: Any) -> Any:
        with torch.enable_grad():
            value = loss(params, rest)
            grads = torch.autograd.grad(value, pytree.tree_leaves(params))
        return grads, value.detach()

    graph = compiled(gradient, {})

    def run() -> Any:
        with torch.no_grad():
            return graph(moving, rest)

    return run


def autograd_outside(loss: Loss, params: Any, rest: Any) -> Run:
    moving = pytree.tree_map(lambda x: x.detach().requires_grad_(), params)
    graph = compiled(loss, {})

    def run() -> Any:
        value = graph(moving, rest)
        return torch.autograd.grad(value, pytree.tree_leaves(moving)), value.detach()

    return run


STYLES = {
    "autograd in the graph": autograd_inside,
    "func in the graph": func_inside,
    "autograd outside": autograd_outside,
}


def used_backward(style: Callable[..., Run], device: str) -> float:
    """The gradient at 1 of the minimal case."""

    def claimed(x: Tensor, rest: Any) -> Tensor:
        del rest
        return Claims.apply(x)  # type: ignore[no-any-return]

    grads, _ = style(claimed, torch.ones((), device=device), {})()
    return float(grads[0])


def main() -> None:
    parser = arguments(__doc__ or "", hidden=128)
    parser.add_argument("--shape", default="8x64")
    parser.add_argument("--case", choices=list(LAYERS), default="all-layers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = Setting(options)
    made = objective(setting)
    parts = made.init()
    rest = {"frozen": parts.frozen, "buffers": parts.buffers, "batch": setting.batch}
    autocast = torch.bfloat16 if options.bf16 else None

    def loss(params: Any, rest: Any) -> Tensor:
        given = rest["frozen"], rest["buffers"], rest["batch"]
        return made(params, *given, scalars={}, autocast=autocast)[0]

    runs: dict[str, Any] = {n: style(loss, parts.trainable, rest) for n, style in STYLES.items()}
    rows = compare({n: lambda r=r: r for n, r in runs.items()}, options, baseline=next(iter(runs)))
    expected, _ = runs["autograd outside"]()
    for name, row in rows.items():
        if "median_s" in row:
            found, _ = runs[name]()
            pairs = list(zip(found, expected, strict=True))
            row["difference"] = max(float((a - b).abs().max()) for a, b in pairs)
            row["claimed_100"] = used_backward(STYLES[name], options.device)
    print(table(rows, {**COLUMNS, "difference": ".0e", "claimed_100": ".0f"}))
    write(f"gradient_{options.hidden}_{options.shape}_{options.device}", options, rows, [])


if __name__ == "__main__":
    main()
