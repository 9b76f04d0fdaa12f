"""Captured graphs write their outputs over those of the call before: nothing may be lost by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fkd.loops import State, TrainStep
from fkd.loops._base.compile import captures_graphs
from fkd.loops._step.cuda_graphs import copied, copied_into, copied_scalars, mark_static
from tests.trees import tree_leaves

from ...models import leaves, same_bits
from ..training import batches, make

STATIC = "_dynamo_static_input_type"


class Overwriting:
    """Stands for `compiled`: every call first fills what any call before it returned."""

    def __init__(self) -> None:
        self.returned: list[torch.UntypedStorage] = []
        self.calls = 0

    def __call__(self, fn: Callable[..., Any], options: Any, modules: Any) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.calls += 1
            for storage in self.returned:
                storage.fill_(255)  # nan, -1, True
            result = fn(*args, **options)
            given = {x.untyped_storage().data_ptr() for x in tensors((args, options))}
            returned = [x.untyped_storage() for x in tensors(result)]
            self.returned = [s for s in returned if s.data_ptr() not in given]
            return result

        return call


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def run(**options: Any) -> tuple[State, list[Any], list[Any]]:
    """The state after five steps, the metrics as they are then, and as they were once."""
    step, state = make(**options)
    kept, before = [], []
    for batch in batches(6)[:5]:
        state, metrics = step(state, batch)
        kept.append(metrics)
        before.append({n: x.clone() for n, x in metrics.items()})
    return state, kept, before


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that captures graphs."""
    monkeypatch.setattr(TrainStep, "_is_replayed", lambda self, device: True)


@pytest.fixture
def overwriting(monkeypatch: pytest.MonkeyPatch) -> Overwriting:
    made = Overwriting()
    monkeypatch.setattr("fkd.loops._step.graphs.compiled", made)
    return made


# Schedules, a stateful loss, buffers, EMA, dropout, clipping: all in `make`.
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_replayed_step_has_the_bits_of_another(accumulate, request):
    plain = run(accumulate=accumulate)
    request.getfixturevalue("replayed")
    assert same_bits(run(accumulate=accumulate), plain)


@pytest.mark.compile
@pytest.mark.parametrize("accumulate", [1, 2])
def test_and_so_has_a_compiled_one(accumulate, request):
    options = {"accumulate": accumulate, "compile": {"backend": "aot_eager"}}
    plain = run(**options)
    request.getfixturevalue("replayed")
    assert same_bits(run(**options), plain)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nothing_that_outlives_a_call_is_overwritten(accumulate, replayed, request):
    plain = run(accumulate=accumulate)
    overwriting = request.getfixturevalue("overwriting")
    state, kept, before = run(accumulate=accumulate)
    assert overwriting.calls == 5 * (1 if accumulate == 1 else 2 * accumulate + 1)
    assert same_bits((state, kept, before), plain)
    assert same_bits(kept, before)
    memory = {x.untyped_storage().data_ptr() for x in tensors((state, kept))}
    assert not memory & {s.data_ptr() for s in overwriting.returned}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_overwriting_shows_where_nothing_is_copied(accumulate, overwriting):
    step, state = make(accumulate=accumulate)
    state, metrics = step(state, batches()[0])
    before = {n: x.clone() for n, x in metrics.items()}
    step(state, batches()[1])
    assert not same_bits(metrics, before)


def test_an_update_left_out_is_one_in_replay_too(replayed, overwriting):
    step, state = make()
    for batch in batches(6, bad=2)[:5]:
        before = leaves((state.trainable, state.buffers, state.loss_state))
        state, metrics = step(state, batch)
        after = leaves((state.trainable, state.buffers, state.loss_state))
        assert same_bits(before, after) == (metrics["finite"] == 0)
    assert state.skipped == 1


def test_states_stay_in_their_tensors(replayed):
    step, state = make()
    first = state.loss_state["centred"]
    for batch in batches()[:3]:
        state, _ = step(state, batch)
    assert state.loss_state["centred"] is first and first.any()


def test_what_stays_where_it_is_is_marked(replayed):
    step, state = make()
    state, _ = step(state, batches()[0])

    def marked(tree: Any) -> set[bool]:
        return {getattr(x, STATIC, None) == "unguarded" for x in tensors(tree)}

    assert marked(state.trainable) == marked(state.frozen) == {True}
    assert marked(step._handles.of(state).leaves) == {True}
    assert marked([state.buffers["teacher"], state.buffers["slow"]]) == {True}
    assert marked([state.buffers["student"], state.loss_state]) == {False}  # move, part by part
    assert not any(hasattr(p, STATIC) for p in step.objective.models["teacher"].module.parameters())


def test_nothing_is_marked_where_nothing_is_captured():
    step, state = make()
    state, _ = step(state, batches()[0])
    assert not any(hasattr(x, STATIC) for x in tensors((state, step._handles.of(state).leaves)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, False),
        ({}, False),
        ({"mode": "default"}, False),
        ({"mode": "reduce-overhead"}, True),
        ({"mode": "max-autotune"}, True),
        ({"mode": "max-autotune-no-cudagraphs"}, False),
        ({"options": {"triton.cudagraphs": True}}, True),
        ({"mode": "max-autotune", "options": {"triton.cudagraphs": False}}, False),
        ({"backend": "aot_eager"}, False),
        ({"backend": "cudagraphs"}, True),
        ({"backend": lambda graph, inputs: graph}, False),
    ],
)
def test_which_options_capture_graphs(options, expected):
    assert captures_graphs(options) is expected


@pytest.mark.compile
def test_marks_reach_the_compiler_and_do_not_recompile():
    found: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        placeholders = graph.graph.find_nodes(op="placeholder")
        kinds = [n.meta.get("tensor_dict", {}).get(STATIC, "") for n in placeholders]
        found.append(kinds)
        return graph

    fn = torch.compile(lambda held, x: held["w"] * x, backend=backend, dynamic=False)
    held = {"w": torch.ones(3)}
    mark_static(held.values())
    for _ in range(3):
        fn(held, torch.ones(3))
        held = {"w": torch.ones(3)}
        mark_static(held.values())
    assert [sorted(kinds) for kinds in found] == [["", "unguarded"]]


def test_copies():
    tree = {"a": torch.arange(3.0), "b": [torch.tensor(2), "text", torch.ones(4, 2).T]}
    made = copied(tree)
    assert same_bits(made, tree) and made["b"][1] == "text"
    assert made["b"][2].stride() == tree["b"][2].stride()
    assert not {x.data_ptr() for x in tensors(made)} & {x.data_ptr() for x in tensors(tree)}
    named = {"x": torch.tensor(1.5), "n": torch.tensor(3), "y": torch.tensor(2.5)}
    scalars = copied_scalars(named)
    assert list(scalars) == ["x", "n", "y"]
    assert all(scalars[n].dtype is x.dtype and scalars[n] == x for n, x in named.items())
    assert scalars["x"].data_ptr() != named["x"].data_ptr()


def test_copies_go_into_tensors_that_fit():
    old = {"same": torch.zeros(2), "wider": torch.zeros(2), "dtype": torch.zeros(1)}
    new = {"same": torch.ones(2), "wider": torch.ones(3), "dtype": torch.ones(1).int()}
    made = copied_into(old, new)
    assert same_bits(made, new) and made["same"] is old["same"]
    assert made["wider"] is not new["wider"] and made["dtype"].dtype is torch.int32
    assert copied_into(new, new)["wider"] is new["wider"]
