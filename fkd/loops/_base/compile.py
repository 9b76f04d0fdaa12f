"""How fkd calls `torch.compile`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import re
import time
import types
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch._dynamo.config as dynamo_config
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import list_mode_options

from fkd._base.errors import expect, listing, nearest
from fkd._blocks.sharing import Sharing

from .cannot_compile import compile_error
from .errors import CompileError
from .random import in_turn
from .waiting import Compiling, Say

CompileOptions: TypeAlias = Mapping[str, object]
"""The keyword arguments of `torch.compile`, and `blocks`: see `sharing_of`."""

LEAST_BLOCKS = 2
"""From how many equal blocks on these are compiled once, where that is asked for."""

_LOG = logging.getLogger(__name__)
_KNOWN = contextlib.nullcontext(False)
"""Around a call that compiles nothing: the host's time counts in every step."""
_NO_RECOMPUTATION = "does not support RNG ops in recompute regions"
_OUTSIDE = re.compile(r"(^|\()(self\b|L\['self'\]|G\[)")
"""In the name of a guard: `self.objective`, `type(self.objective)`, `L['self'].objective`, and
what a function finds in its file, `G['softmax']`, `dict(G['Mean'])`."""


def compiled(
    fn: Callable[..., Any],
    options: CompileOptions | None,
    modules: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """A function as one graph for each input shape; as it is if `options` is None.

    The function may call `torch.autograd.grad`, which becomes a part of the graph. What it
    reads from the object that it is a method of is read once, while tracing, as in `jax.jit`.

    Args:
      fn: a pure function of tensors.
      options: for `torch.compile`, such as `{"mode": "max-autotune"}`. Where they capture CUDA
        graphs, see `captures_graphs` for how long outputs live. Random numbers are those of
        eager torch, unless `{"options": {"fallback_random": False}}` lets Inductor draw its own
        (on a GPU it can draw them inside of other kernels).
      modules: that the function calls, by name: an error says in which of them it arose.

    Raises:
      CompileError: by a call, if torch cannot compile it; says where and what to do.
    """
    if options is None:
        return fn
    graph = torch.compile(_of_its_own(fn), **_arguments(options))
    captured = captures_graphs(options)
    # Read only while tracing, but any call may trace. `config.patch` is ten times as slow.
    set_for_tracing = dynamo_config._make_closure_patcher(trace_autograd_ops=True)  # pyright: ignore[reportAttributeAccessIssue, reportPrivateUsage]

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if captured:
            torch.compiler.cudagraph_mark_step_begin()
        set_back = set_for_tracing()
        try:
            return _first_plan(graph, args, kwargs)
        except TorchDynamoException as error:
            raise compile_error(error, modules or {}) from error
        finally:
            set_back()

    return call


def options_of(compile: bool | CompileOptions) -> dict[str, Any] | None:
    """The argument `compile=` of the public functions as options for `torch.compile`; None if
    nothing is compiled."""
    what = "True, False, or a dict of the keyword arguments of torch.compile"
    fix = "{'mode': 'max-autotune'}, for example."
    expect("compile", "compile", compile, (bool, Mapping), what, fix)
    options = {} if isinstance(compile, bool) else dict(compile)
    known = [n for n in inspect.signature(torch.compile).parameters if n != "model"] + ["blocks"]
    for name in options:
        if name not in known:
            raise ValueError(
                f"compile: torch.compile has no argument {name!r}. {nearest(name, known)}"
                f"Arguments: {listing(known)}."
            )
    return None if compile is False else options


class Shapes:
    """The shapes with which something was called that is compiled where it has to be: for each
    of them, or, where sizes are dynamic, for some.

    Attributes:
      compilations: how many of them compiled.
      seconds: how long these calls took.
    """

    def __init__(self) -> None:
        self._known: set[Hashable] = set()
        self.compilations = 0
        self.seconds = 0.0

    def new(
        self, shape: Hashable, *, first: Callable[[], object], say: Say | None = None
    ) -> contextlib.AbstractContextManager[bool]:
        """Around a call that may compile: whether the shape is new. Threads compile in turn.

        Args:
          shape: of the arguments.
          first: called before the very first shape is compiled: the check of an objective.
          say: shows that the step is compiled, with the seconds so far; None: nothing is said.
        """
        return _KNOWN if shape in self._known else self._compiling(shape, first, say)

    @contextlib.contextmanager
    def _compiling(
        self, shape: Hashable, first: Callable[[], object], say: Say | None
    ) -> Generator[bool]:
        if not self._known:
            first()
        began = time.perf_counter()
        line = Compiling("the step")(lambda: shape, say)
        # In turn, since the compiler sets the generators back.
        with line, in_turn(), unlimited_recompilation():
            before = _graphs()
            yield True
            new = _graphs() > before
        self._known.add(shape)
        if new:
            self.compilations += 1
            self.seconds += time.perf_counter() - began


def _graphs() -> int:
    """How many graphs this process has traced, by torch's own count."""
    return counters["stats"]["unique_graphs"]


def _first_plan(graph: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The call; without recomputation in the graph, where torch cannot have it there."""
    try:
        return graph(*args, **kwargs)
    except BackendCompilerFailed as error:
        if _NO_RECOMPUTATION not in str(error):
            raise
    _LOG.warning(
        "Activation checkpointing of a part that draws random numbers cannot be compiled: the "
        "compiled step keeps its activations. Values and gradients are the same. To recompute "
        "the rest, give torch.utils.checkpoint a context_fn that saves what is random."
    )
    with functorch_config.patch(remat_using_tags_for_fwd_loss_bwd_graph=False):
        return graph(*args, **kwargs)


def refuse_to_compile(reasons: Sequence[str], options: CompileOptions | None) -> None:
    """Raise what is known not to compile as one graph, before it is tried.

    Raises:
      CompileError: there are reasons, and one graph is wanted.
    """
    if reasons and options is not None and options.get("fullgraph", True):
        raise CompileError(
            f"torch.compile cannot compile this step: {'; '.join(reasons)}. Or run it without: "
            "train_step(..., compile=False)."
        )


def captures_graphs(options: CompileOptions | None) -> bool:
    """Whether functions that are compiled so are captured as CUDA graphs, on such a device.

    Every call then starts afresh: what any earlier call of any such function has returned is
    overwritten, and has to be copied if it is still needed.
    """
    if options is None:
        return False
    backend = options.get("backend", "inductor")
    if backend != "inductor":
        return backend == "cudagraphs"
    chosen = {k.replace("-", "_"): v for k, v in _arguments(options)["options"].items()}
    return bool(chosen.get("triton.cudagraphs", inductor_config.triton.cudagraphs))


def _arguments(options: CompileOptions) -> dict[str, Any]:
    """The arguments of `torch.compile`, which takes a mode or options, and not both."""
    chosen: dict[str, Any] = {"fullgraph": True, "dynamic": False, **options}
    mode = chosen.pop("mode", None)
    inner: dict[str, Any] = {} if mode is None else list_mode_options(mode)
    if chosen.get("backend", "inductor") == "inductor":
        inner["fallback_random"] = True
    if chosen["fullgraph"]:  # else modules have frames of their own, whose guards are on `self`
        inner["guard_filter_fn"] = arguments_alone
    inner.update(chosen.pop("options", None) or {})
    chosen.pop("blocks", None)
    return {**chosen, "options": inner}


def sharing_of(options: CompileOptions | None) -> Sharing | None:
    """How equal blocks of a model share what is compiled; None: each is compiled as it stands.

    Args:
      options: `"blocks"` is the least number of blocks of one class in a list from which on they
        are compiled once; True: two. The default is False, since a call of a graph costs the
        host time in every step, which a small model would notice.

    Raises:
      ValueError: `blocks` is something else, or shapes are dynamic, or graphs are broken.
    """
    blocks = False if options is None else options.get("blocks", False)
    if options is None or blocks is False:
        return None
    least = LEAST_BLOCKS if blocks is True else blocks
    if not isinstance(least, int) or least < 2:
        raise ValueError(
            f'compile: "blocks" is {blocks!r}; the least number of equal blocks that are compiled '
            "once (2 or more), True or False is expected."
        )
    arguments = _arguments(options)
    inductor = arguments.get("backend", "inductor") == "inductor"
    if arguments["dynamic"] or not arguments["fullgraph"]:
        raise ValueError(
            'compile: "blocks" is for one graph of fixed shapes; leave out "dynamic" and '
            '"fullgraph", or "blocks".'
        )
    without = ("triton.cudagraphs", "guard_filter_fn")
    inner = {k: v for k, v in arguments["options"].items() if k.replace("-", "_") not in without}
    if not all(isinstance(v, Hashable) for v in inner.values()):
        return None
    return Sharing(least, tuple(sorted(inner.items())) if inductor else None)


def arguments_alone(guards: Sequence[Any]) -> list[bool]:
    """Which guards to keep: those on the arguments of the function and on torch's modes.

    What `self` holds never changes, and what is read from outside of the arguments is read once,
    while tracing. Guards on both are thousands (every module of every model, every function that
    is called), and would be evaluated at every step.
    """
    return [_OUTSIDE.search(guard.name) is None for guard in guards]


def _of_its_own(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The method with a code object that no other instance has: graphs are kept by code object,
    and without guards on `self` one instance would be given the graph of another."""
    if not isinstance(fn, types.MethodType):
        return fn
    old = fn.__func__
    new = types.FunctionType(
        old.__code__.replace(), old.__globals__, old.__name__, old.__defaults__, old.__closure__
    )
    new.__kwdefaults__ = old.__kwdefaults__
    return types.MethodType(new, fn.__self__)


@contextlib.contextmanager
def unlimited_recompilation() -> Generator[None]:
    """Compile for every new shape, however many there are; torch would give up after eight."""
    with dynamo_config.patch(recompile_limit=10_000, accumulated_recompile_limit=100_000):
        yield
