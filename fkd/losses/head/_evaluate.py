"""From arguments to results: which execution of the one definition runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._base.mean import Mean, MeanWithParts
from .._shared.products import outside_autocast
from ._arguments import HeadArguments, Strategy
from ._chunked import chunked, torch_rows
from ._divided import divided_rows
from ._fused import fused_rows, unfusible
from ._inputs import problem_of
from ._materialized import materialized
from ._problem import Number, Problem, Solution, tracked
from ._sizes import chunk_tokens, usual_budget


def evaluate(arguments: HeadArguments, *, metrics: bool = False) -> tuple[Mean, dict[str, Tensor]]:
    """The sum and count of `head_divergence`, and the values of every token by name."""
    problem = problem_of(arguments, metrics=metrics)
    result = solve(problem, arguments.strategy, arguments.chunk_size)
    positions = arguments.student_hidden.shape[:-1]
    columns = (x.reshape(positions) for x in result.values.unbind(-1))
    count = problem.keep.sum().to(result.total.dtype)
    return Mean(result.total, count), dict(zip(problem.columns, columns, strict=True))


def evaluate_parts(arguments: HeadArguments) -> MeanWithParts:
    """The sum and count, and of a sum of divergences those of each, by its name."""
    problem = problem_of(arguments, metrics=False)
    result = solve(problem, arguments.strategy, arguments.chunk_size)
    count = problem.keep.sum().to(result.total.dtype)
    names = problem.divergence.labels
    if len(names) == 1:
        return MeanWithParts(Mean(result.total, count), {})
    columns = zip(names, result.values.detach().unbind(-1), strict=False)
    parts = {name: Mean(problem.summed(column).detach(), count) for name, column in columns}
    return MeanWithParts(Mean(result.total, count), parts)


def solve(problem: Problem, strategy: Strategy, chunk_size: int | None) -> Solution:
    """The result of a problem by a strategy."""
    if strategy not in ("auto", "materialized", "chunked", "fused"):
        raise ValueError(
            f"head_divergence: strategy {strategy!r}; 'auto', 'materialized', 'chunked' or "
            "'fused' is expected."
        )
    if problem.division is not None:
        _check_divided(problem, strategy)
    if strategy == "materialized":
        return materialized(problem)
    _check_constants(problem)
    if _mapped():
        return materialized(problem)
    if problem.division is not None:
        with outside_autocast(problem.keep):
            return chunked(problem, _chunk(problem, chunk_size), divided_rows)
    if strategy == "auto":
        strategy = "fused" if problem.keep.is_cuda and unfusible(problem) is None else "chunked"
    if strategy == "fused" and (reason := unfusible(problem)) is not None:
        raise ValueError(f"head_divergence: strategy 'fused' {reason}. Use strategy='chunked'.")
    rows = fused_rows(problem) if strategy == "fused" else torch_rows
    with outside_autocast(problem.keep):
        return chunked(problem, _chunk(problem, chunk_size), rows)


def _chunk(problem: Problem, chunk_size: int | None) -> int:
    if chunk_size is None:
        tokens, vocab = problem.student.hidden.shape[0], problem.student.weight.shape[0]
        device, dtype = problem.keep.device, problem.logits_dtype
        if problem.division is None:
            return chunk_tokens(tokens, vocab, device=device, dtype=dtype)
        # The same on all ranks, whatever memory is free on them.
        vocab, budget = problem.division.most, usual_budget(device)
        return chunk_tokens(tokens, vocab, device=device, dtype=dtype, budget=budget)
    if chunk_size < 1:
        raise ValueError(f"head_divergence: chunk_size {chunk_size}; 1 or more is expected.")
    return chunk_size


def _check_divided(problem: Problem, strategy: Strategy) -> None:
    """Say what is not to be had of heads that are cut along the vocabulary over several ranks."""
    cut = "head_divergence: the heads are cut along the vocabulary over several ranks"
    if strategy not in ("auto", "chunked"):
        raise ValueError(f"{cut}, and strategy is {strategy!r}; 'chunked' is expected.")
    if problem.known is not None:
        raise ValueError(
            f"{cut}, and the teacher is known on some classes only. Give its hidden states and "
            "weight, or whole weights: weight.full_tensor()."
        )
    if _mapped():
        raise ValueError(f"{cut}: torch.vmap has no rule for that. Call it without vmap.")


def _check_constants(problem: Problem) -> None:
    """The gradient is computed for the student alone: say so rather than lose another."""
    named: dict[str, Number | None] = {
        "temperature": problem.temperature,
        "student_softcap": problem.student.softcap,
    }
    if problem.teacher is not None:
        names = ("hidden", "weight", "bias", "logit_scale", "softcap")
        named |= {f"teacher_{n}": x for n, x in zip(names, problem.teacher, strict=True)}
    if problem.known is not None:
        names = problem.known.LEAVES
        named |= {f"teacher_hidden.{n}": getattr(problem.known, n) for n in names}
    learned = [name for name, x in named.items() if tracked(x) is not None]
    if learned:
        raise ValueError(
            f"head_divergence: {', '.join(learned)} requires grad; a constant is expected, since "
            "this strategy computes the gradient by the student's hidden states, weight, bias and "
            "scale, and by the weights of the divergences. Detach it, or use "
            "strategy='materialized'."
        )


def _mapped() -> bool:
    """Whether `torch.vmap` is at work: it has no rule for sums that are added to in place."""
    if torch.compiler.is_compiling():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or []  # pyright: ignore
    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels)  # pyright: ignore
