"""Refs: pure functions from the context of a step to a value, written as ordinary code.

    student.hidden_states[3]          an output path
    student.tap("encoder.layer.2")    what a submodule returned (or was given: side="input")
    student.attention(3)              the attention map of one layer (transformers)
    student.param("lm_head.weight")   a parameter
    teacher.patched({"layer2": ref})  what a model returns if a submodule returned this instead
    student.on(batch.crop).logits     a further run of a model, on other inputs
    batch.labels != -100              an operation; also student.logits / 2, x[:, 1:], ~mask
    student.logits.mean(-1)           a method, or a torch function: torch.softmax(ref, -1)
    call(fn, ref, ...)                any function of other refs
    module("project")(ref)            a named module of the objective, applied to a ref
    lambda ctx: ctx["student"]        any callable of the context

A ref is immutable, prints as the code that made it, and compares and hashes by that code.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, overload

from .code import Item as Item
from .code import Node as Node
from .code import Ref as Ref
from .code import Root as Root
from .code import children as children
from .code import compute as compute
from .code import node as node
from .code import refs_in
from .code import roots as roots
from .code import walk as walk
from .context import Context as Context
from .models import Capture as Capture
from .models import Inside as Inside
from .models import OfModel as OfModel
from .models import Param as Param
from .models import Patched as Patched
from .models import Returned as Returned
from .models import Run as Run
from .models import Tap as Tap
from .models import inside as inside
from .paths import show
from .trees import arguments

P = ParamSpec("P")


class Offer(Ref, Generic[P]):
    """What `student.value` is: the output called so, and, called with a layer, what the model
    offers by that name."""

    def __init__(self, node: Node, fn: Callable[..., Ref]) -> None:
        super().__init__(node)
        vars(self)["__doc__"] = fn.__doc__
        vars(self)["__wrapped__"] = fn

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Ref: ...

    def __reduce__(self) -> tuple[Any, ...]:
        return Ref, (self._node,)


class offered(Generic[P]):
    """A method of a model's ref, which leaves the output of that name within reach."""

    def __init__(self, fn: Callable[Concatenate[Any, P], Ref]) -> None:
        self.fn = fn
        self.__doc__ = fn.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, ref: None, owner: type) -> Callable[..., Ref]: ...

    @overload
    def __get__(self, ref: Ref, owner: type) -> Offer[P]: ...

    def __get__(self, ref: Ref | None, owner: type) -> Any:
        if ref is None:
            return self.fn  # for help(ModelRef)
        return Offer(Item(ref, self.name), types.MethodType(self.fn, ref))


class RunRef(Ref):
    """The ref of a run of a model, which has more to offer than its output.

    None of these methods hides an output: `student.value` is the output that is called so, and
    `student.value(3)` are the value states of layer 3.
    """

    def _inside(self, *key: Any) -> Ref:
        """What is captured inside the model in this run."""
        assert isinstance(self._node, Returned)
        return Ref(Inside(self._node.run, key))

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Ref:
        offer = inspect.getattr_static(type(self), name, None)
        if isinstance(offer, offered):
            return offer.fn(self, *args, **kwargs)
        return super()._method(name, *args, **kwargs)

    @offered
    def tap(self, module: str, side: Literal["output", "input"] = "output") -> Ref:
        """What a submodule returned, or was given, in the forward pass.

        The value is copied when it is captured, so that a later in-place operation (an
        `inplace=True` ReLU) does not change it. A module that runs several times gives the
        value of its last run.

        Args:
          module: dotted name, as in `named_modules()`; `""` is the model itself.
          side: `"output"`, or `"input"` for the first positional argument.

        Returns:
          A ref to the value, whatever the submodule returned.

        Example:
          >>> student.tap("encoder.layer.2")[0], teacher.tap("fc", "input")
          (student.tap('encoder.layer.2')[0], teacher.tap('fc', 'input'))
        """
        return self._inside(module, side)

    @offered
    def attention(self, layer: int, *, part: str | None = None) -> Ref:
        """Attention probabilities (after the softmax) of one layer of a transformers model.

        All other layers stay on the fused kernel.

        Args:
          layer: counted from 0.
          part: `"encoder"`, `"decoder"` or `"cross"`, for models that have more than one.

        Returns:
          A ref to `[batch, heads, query, key]`.

        Example:
          >>> teacher.attention(3, part="cross")
          teacher.attention(3, part='cross')
        """
        return self._inside("attention", layer, part)

    @offered
    def attention_scores(self, layer: int, *, part: str | None = None) -> Ref:
        """Scaled attention scores of one layer, of which the softmax is taken, as in TinyBERT.

        Pairs that the model masks hold about the lowest number of the dtype; the losses of
        `fkd.losses` leave them out.

        Args:
          layer, part: as in `attention`.

        Returns:
          A ref to `[batch, heads, query, key]`.
        """
        return self._inside("attention_scores", layer, part)

    @offered
    def query(self, layer: int, *, part: str | None = None) -> Ref:
        """Query states of one layer, with the arguments of `attention`.

        Returns:
          A ref to `[batch, heads, length, head_dim]`.
        """
        return self._inside("query", layer, part)

    @offered
    def key(self, layer: int, *, part: str | None = None) -> Ref:
        """Key states of one layer, with the arguments of `attention`.

        Returns:
          A ref to `[batch, key_value_heads, length, head_dim]`.
        """
        return self._inside("key", layer, part)

    @offered
    def value(self, layer: int, *, part: str | None = None) -> Ref:
        """Value states of one layer, with the arguments of `attention`.

        Returns:
          A ref to `[batch, key_value_heads, length, head_dim]`.
        """
        return self._inside("value", layer, part)


class ModelRef(RunRef):
    """The ref of a model: `student`, `teacher`, or `fkd.ref(name)`.

    Its attributes are the model's outputs: `student.logits`, `student.hidden_states[3]`. Its
    methods reach what the model does not return: values inside of its run on the batch, its
    parameters, and what it returns in further runs. None of them hides an output: `student.value`
    is the output that is called so, and `student.value(3)` are the value states of layer 3.

    Example:
      >>> student.tap("encoder.layer.2"), student.param("lm_head.weight"), student.tap
      (student.tap('encoder.layer.2'), student.param('lm_head.weight'), student.tap)
    """

    @property
    def _name(self) -> str:
        assert isinstance(self._node, Root)
        return self._node.name

    def _inside(self, *key: Any) -> Ref:
        return Ref(inside(self._name, key))

    @offered
    def param(self, name: str) -> Ref:
        """A parameter, or a buffer as it was before the batch; needs no forward pass.

        Args:
          name: dotted, as in `named_parameters()` and `named_buffers()`.

        Returns:
          A ref to the tensor: of a trainable model, with a gradient.

        Example:
          >>> student.param("lm_head.weight"), teacher.param("bn.running_mean")
          (student.param('lm_head.weight'), teacher.param('bn.running_mean'))
        """
        return Ref(Param(self._name, name))

    @offered
    def patched(self, outputs: Mapping[str, Ref]) -> Ref:
        """What the model returns on its own inputs if some submodules returned other values.

        The model runs once more; gradients pass through it to these values, also if it is frozen:
        a student's features in its teacher's later layers (FCFD), or the states of one text in the
        computation of another (interchange interventions).

        Batch statistics that this run would leave behind are dropped. Layers before a patch run
        for nothing, unless the step is compiled, which leaves them out.

        Args:
          outputs: `{dotted name: ref}`, as in `named_modules()`. Of a module that returns a tuple
            the first element is replaced.

        Returns:
          A ref to what the model returns then; its outputs are read from it.

        Raises:
          TypeError: `outputs` is no dict of refs.

        Example:
          >>> teacher.patched({"layer2": module("bridge")(student.tap("layer2"))}).logits
          teacher.patched({'layer2': bridge(student.tap('layer2'))}).logits
        """
        if not isinstance(outputs, Mapping) or not outputs:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"{self!r}.patched: outputs is {show(outputs)}; a dict of a submodule's name and "
                f"a ref is expected: {self!r}.patched({{'layer2': ref}})."
            )
        refs: dict[str, object] = {**outputs}
        wrong = [name for name, value in refs.items() if not isinstance(value, Ref)]
        if wrong:
            raise TypeError(
                f"{self!r}.patched: of {wrong[0]!r} a {type(refs[wrong[0]]).__name__} is given; "
                "a ref is expected."
            )
        return Ref(Patched(self._name, tuple(outputs.items())))

    @offered
    def on(self, *inputs: object, **named: object) -> RunRef:
        """What the model returns on other inputs: it runs once more, with the same parameters.

        Everything can be read of this run that can be read of a model's run on the batch:
        outputs, hidden states, attention, taps. Gradients pass through it to its inputs, also
        if the model is frozen: from a teacher to the generator of its images (DAFL), or to
        images that are learned (DeepInversion). A model that is read in this way alone does not
        run on the batch. A trainable model's batch statistics move on, as in any forward pass.

        Args:
          inputs, named: what its `forward` takes; refs among them are filled in.

        Returns:
          A ref to what the model returns then; it has `tap`, `attention`, ... as the model's ref.

        Raises:
          TypeError: no inputs are given.

        Example:
          >>> student.on(batch.small_crop).logits
          student.on(batch.small_crop).logits
          >>> teacher.on(image=module("generator")(batch.noise)).tap("layer1.bn", "input")
          teacher.on(image=generator(batch.noise)).tap('layer1.bn', 'input')
        """
        if not inputs and not named:
            raise TypeError(
                f"{self!r}.on: no inputs are given; what its forward takes is expected: "
                f"{self!r}.on(batch.other) or {self!r}.on(image=batch.other). Its outputs on the "
                f"batch itself are {self!r}.logits."
            )
        args, kwargs = arguments(f"{self!r}.on", tuple(inputs), named)
        return RunRef(Returned(Ref(Run(self._name, args, kwargs))))


@overload
def ref(name: Literal["batch"]) -> Ref: ...  # pyright: ignore[reportOverlappingOverload]


@overload
def ref(name: str) -> ModelRef: ...


def ref(name: str) -> Ref:
    """The root of a model (or of `"batch"`) by the name that `Objective` is given.

    Example:
      >>> ref("roberta").hidden_states[3]
      ref('roberta').hidden_states[3]
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"ref: name is {show(name)}; the name of a model is expected, as in "
            "Objective(terms, name=...): fkd.ref('name')."
        )
    return batch if name == "batch" else ModelRef(Root(name))


def output_path(value: Ref) -> tuple[str, tuple[Any, ...]] | None:
    """`(root, keys)` of an output path such as `student.hidden_states[3]`, else None.

    A path through a further run (`student.patched(...)`, `student.on(...)`) is none: it has
    `further_path`.
    """
    part, keys = _path(value)
    return (part.name, keys) if isinstance(part, Root) and keys is not None else None


def further_path(value: Ref) -> tuple[str, tuple[Any, ...]] | None:
    """The same of what a model returns in a further run."""
    part, keys = _path(value)
    part = node(part.run) if isinstance(part, Returned) else part
    return (part.root, keys) if isinstance(part, Patched | Run) and keys is not None else None


def _path(value: Ref) -> tuple[Node, tuple[Any, ...] | None]:
    """What a path begins with, and its keys; None if refs are among them."""
    keys: list[Any] = []
    part = node(value)
    while isinstance(part, Item):
        if any(True for _ in refs_in(part.key)):
            return part, None
        keys.append(part.key)
        part = node(part.parent)
    return part, tuple(reversed(keys))


student = ModelRef(Root("student"))
teacher = ModelRef(Root("teacher"))
batch = Ref(Root("batch"))
