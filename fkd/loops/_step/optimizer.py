"""Any `torch.optim` optimizer as the update of a state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from fkd._base.errors import listing, nearest

NamedParameters: TypeAlias = Sequence[tuple[str, Tensor]]
"""`("student.encoder.weight", tensor)` pairs, as `named_parameters()` would give them."""

MakeOptimizer: TypeAlias = Callable[[NamedParameters], Optimizer]


def param_groups(
    params: NamedParameters,
    *,
    weight_decay: float = 0.0,
    no_decay: Callable[[str, Tensor], bool] | Sequence[str] = lambda name, p: p.ndim < 2,
    lr: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups: no decay on biases and norms, and another rate for some names.

    Args:
      params: what the optimizer factory is given.
      weight_decay: of the parameters that decay.
      no_decay: which do not: a function of name and tensor, or a list of name prefixes such as
        `["student.embeddings"]`; by default those with fewer than two axes (biases, norms).
      lr: `{name prefix: learning rate}`, such as `{"project": 1e-3}`; the longest prefix that
        fits decides, and what none fits has the optimizer's own rate.

    Raises:
      ValueError: a prefix to which no parameter belongs, or parameters without names.

    Example:
      >>> weight, bias = torch.zeros(2, 2), torch.zeros(2)
      >>> groups = param_groups([("student.w", weight), ("student.b", bias)], weight_decay=0.01)
      >>> [group["weight_decay"] for group in groups]
      [0.01, 0.0]
    """
    named = [pair for pair in params if _is_named(pair)]
    rates = dict(lr or {})
    _all_fit("lr", rates, named)
    if callable(no_decay):
        without_decay = no_decay
    else:
        prefixes = [no_decay] if isinstance(no_decay, str) else list(no_decay)
        _all_fit("no_decay", prefixes, named)
        without_decay: Callable[[str, Tensor], bool] = lambda name, p: bool(fitting(name, prefixes))
    grouped: dict[tuple[float | None, float], list[tuple[str, Tensor]]] = {}
    for name, p in named:
        prefix = max(fitting(name, rates), key=len, default=None)
        decay = 0.0 if without_decay(name, p) else weight_decay
        grouped.setdefault((None if prefix is None else rates[prefix], decay), []).append((name, p))
    return [
        {"params": members, "weight_decay": decay, **({} if rate is None else {"lr": rate})}
        for (rate, decay), members in grouped.items()
    ]


def fitting(name: str, prefixes: Iterable[str]) -> list[str]:
    """The prefixes of a parameter's name, as whole parts between its dots."""
    return [k for k in prefixes if name == k or name.startswith(k.rstrip(".") + ".")]


def _is_named(pair: object) -> bool:
    if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str):
        return True
    raise ValueError(
        f"param_groups: params holds a {type(pair).__name__}; (name, tensor) pairs are expected. "
        "Pass on what train_step gives to the optimizer's function: "
        "lambda params: torch.optim.AdamW(param_groups(params, ...))."
    )


def _all_fit(option: str, prefixes: Iterable[str], named: NamedParameters) -> None:
    """Refuse a prefix that would be ignored."""
    names = [name for name, _ in named]
    parts = [name.split(".") for name in names]
    known = dict.fromkeys(".".join(p[: i + 1]) for p in parts for i in range(len(p)))
    for prefix in prefixes:
        if not any(fitting(name, [prefix]) for name in names):
            raise ValueError(
                f"param_groups: {option} names {prefix!r}, and no trainable parameter is there. "
                f"{nearest(prefix, known)}The parameters begin with: "
                f"{listing(dict.fromkeys(p[0] for p in parts))}."
            )


class Updater:
    """An optimizer over the tensors of one state.

    The optimizer object is only a machine: everything that it remembers is in `tree`, which
    is the `optimizer` field of the state.
    """

    def __init__(
        self,
        make: MakeOptimizer,
        trainable: Mapping[str, Mapping[str, Tensor]],
        tree: Mapping[str, Mapping[str, object]],
    ) -> None:
        self.named = {f"{m}.{n}": p for m, params in trainable.items() for n, p in params.items()}
        self.optimizer = _made(make, list(self.named.items()))
        _check_optimizer(self.optimizer, self.named)
        _use_fused(self.optimizer)
        self.base_lr = [group["lr"] for group in self.optimizer.param_groups]
        for name, state in tree.items():
            self.optimizer.state[self.named[name]] = dict(state)
        self.tree: dict[str, dict[str, object]] = {}
        self._refresh()

    def _refresh(self) -> None:
        live = self.optimizer.state
        self.tree = {name: live[p] for name, p in self.named.items() if p in live}

    def update(self, grads: Sequence[Tensor | None], finite: Tensor, lr_factor: float) -> None:
        """One step of the optimizer, left out where `finite` is False; the host never waits
        for a device to know. A parameter whose gradient is None stays as it is."""
        for group, base in zip(self.optimizer.param_groups, self.base_lr, strict=True):
            group["lr"] = base * lr_factor
        for p, grad in zip(self.named.values(), grads, strict=True):
            p.grad = _in_order_of(p, grad)
        if finite.device.type == "cpu":
            if bool(finite):
                self.optimizer.step()
        elif _skips_by_itself(self.optimizer):
            self.optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer.step()
        else:
            self._step_where(finite)
        for p in self.named.values():
            p.grad = None
        if len(self.tree) < len(self.optimizer.state):
            self._refresh()

    @torch.no_grad()
    def _step_where(self, finite: Tensor) -> None:
        """Step, and take it back where it was not finite, on the device."""
        tensors = [*self.named.values(), *_tensors(self.optimizer)]
        before = [x.clone() for x in tensors]
        self.optimizer.step()
        for x, old in zip(tensors, before, strict=True):
            x.copy_(torch.where(finite, x, old))
        known = {id(x) for x in tensors}
        for x in _tensors(self.optimizer):
            if id(x) not in known:  # made by this very step
                x.copy_(torch.where(finite, x, 0))


def _in_order_of(p: Tensor, grad: Tensor | None) -> Tensor | None:
    """A gradient in the memory order of its parameter: the fused kernels (torch 2.13) read both
    from end to end, and a transposed gradient would be added to the wrong numbers."""
    if grad is None or grad.layout is not torch.strided or grad.stride() == p.stride():
        return grad
    return torch.empty_like(p).copy_(grad)


def _tensors(optimizer: Optimizer) -> list[Tensor]:
    values = [x for state in optimizer.state.values() for x in state.values()]
    return [x for x in values if isinstance(x, Tensor)]


def _made(make: MakeOptimizer, named: NamedParameters) -> Optimizer:
    try:
        return make(named)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise TypeError(
            f"train_step: the function that makes the optimizer failed: {type(error).__name__}: "
            f"{error}. It is given one list of (name, parameter) pairs, as named_parameters() "
            "would give them: lambda params: torch.optim.AdamW(params, lr=1e-4)."
        ) from error


def _check_optimizer(optimizer: object, named: Mapping[str, Tensor]) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"train_step: optimizer made a {type(optimizer).__name__}; a torch.optim.Optimizer "
            "is expected. Pass a function: lambda params: torch.optim.AdamW(params, lr=1e-4)."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("train_step: LBFGS evaluates the loss several times a step. Use another.")
    names = {id(p): name for name, p in named.items()}
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for i, name in names.items() if i not in optimized]
    if missing:
        raise ValueError(
            f"train_step: the optimizer leaves out {missing[:5]} ({len(missing)} parameters). "
            "Give it all of them, or mark them: fkd.trainable(module, unused=[...])."
        )


def _use_fused(optimizer: Optimizer) -> None:
    """Switch to the fused kernels, faster on CPU and GPU, where the user left the choice open."""
    groups = optimizer.param_groups
    params: list[Tensor] = [p for group in groups for p in group["params"]]
    able = all("fused" in group for group in groups) and all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params
    )
    # Adagrad has no fused kernel on CUDA.
    if not able or isinstance(optimizer, torch.optim.Adagrad):
        return
    for group in groups:
        if group["fused"] is None and not group.get("foreach") and not group.get("differentiable"):
            group["fused"] = True


def _skips_by_itself(optimizer: Optimizer) -> bool:
    """Whether the fused kernel leaves an update out where `found_inf` is set. (That of SGD
    does too, but leaves its momentum uninitialised if the first update is one of them.)"""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
