"""Why torch cannot compile a step: in which module, and what to do about it."""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Iterator, Mapping, Sequence
from traceback import FrameSummary
from types import CodeType
from typing import Any

from .errors import CompileError

_REMEDIES = (
    (r"requires_grad", "set requires_grad on parameters before the model is given to fkd"),
    (
        r"data-dependent|Data-dependent|data dependent|Dynamic shape operator|nonzero|\.item\(\)",
        "switch off what depends on values that are drawn or computed (layer drop, masks by "
        "index), or use torch.where",
    ),
    (
        r"random|Random",
        "draw with torch (torch.rand) and not with Python's random, or switch the draw off",
    ),
    (
        r"slice_shape",
        "write torch.rand(n).argsort() for the torch.randperm(n) that indexes a tensor, which "
        "this torch cannot compile",
    ),
    (r"marked as skipped|Unsupported function", "use torch functions, or switch that part off"),
)


def compile_error(error: Exception, modules: Mapping[str, Any]) -> CompileError:
    """An error of torch.compile in words.

    Args:
      error: what torch raised.
      modules: those that may have been traced, by the name of the model.
    """
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    what = lines[0].rstrip(".") if lines else type(error).__name__
    if what.startswith("backend=") and len(lines) > 1:
        what = f"{what} {lines[1]}".rstrip(".")
    explained = next((line for line in lines[1:] if line.startswith("Explanation:")), "")
    reason = explained.removeprefix("Explanation:").strip()
    stack: Sequence[FrameSummary] = getattr(error, "real_stack", None) or ()
    place = next(_places(stack, modules), "")
    remedy = next((r for pattern, r in _REMEDIES if re.search(pattern, text)), "")
    parts = [
        f"torch.compile cannot compile this step: {what}.",
        reason,
        f"It stopped in {place}." if place else "",
        "Run it without: train_step(..., compile=False).",
        f"Or {remedy}." if remedy else "",
    ]
    return CompileError(" ".join(p for p in parts if p))


def _places(stack: Sequence[FrameSummary], modules: Mapping[str, Any]) -> Iterator[str]:
    """Where the innermost frames are: in the code of a module of a model, or just in a file."""
    lines = [(frame.filename, frame.lineno or 0) for frame in stack]
    named = [
        (f"{type(m).__name__}, {name!r} of model {model!r}" if name else f"model {model!r}", m)
        for model, root in modules.items()
        for name, m in root.named_modules()
    ]
    for file, line in reversed(lines):
        source = linecache.getline(file, line).strip()
        for what, module in named:
            if _is_in(module, file, line):
                short = file.replace("\\", "/").rpartition("/")[2]
                yield f"{what} ({short}:{line}: {source})"
    for file, line in reversed(lines):
        yield f"{file}:{line}: {linecache.getline(file, line).strip()}"


def _is_in(module: Any, file: str, line: int) -> bool:
    """Whether a line stands in the code of a module's class or of its bases."""
    for base in type(module).__mro__:
        if base.__module__.partition(".")[0] == "torch" or base is object:
            continue
        for method in vars(base).values():
            code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            if isinstance(code, CodeType) and code.co_filename == file:
                ends = [n for _, _, n in code.co_lines() if n is not None]
                if code.co_firstlineno <= line <= max(ends, default=0):
                    return True
    return False
