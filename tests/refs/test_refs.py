"""Laws of refs: they print as code, compare and hash by it, and compute what they say."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import NamedTuple

import pytest
import torch

import fkd
from fkd import Context, batch, call, module, ref, stop_gradient, student, teacher
from fkd._base.errors import RefError
from fkd._refs.derived import as_ref
from fkd._refs.refs import output_path, walk
from fkd._refs.refs import roots as node_roots

project = module("project")
NAMES = {**vars(fkd), "project": project, "softmax": torch.softmax}

REFS = [
    student,
    batch,
    ref("roberta"),
    student.logits,
    student.hidden_states[3],
    student.hidden_states[-1],
    teacher.logits[:, 1:],
    teacher.logits[..., 0],
    teacher.logits[:, ::2],
    ref("roberta").hidden_states[3],
    batch["a name"],
    batch.labels,
    student["value"],
    batch["class"],
    batch["name"],
    student["_private"],
    student.logits["item"],
    student["x"]["parent"].y,
    student.tap("encoder.layer.2"),
    student.tap("encoder.layer.2", "input"),
    student.tap("encoder")[0],
    student.attention(3),
    student.attention(3, part="cross"),
    student.attention_scores(1),
    student.query(0),
    student.key(0),
    student.value(0),
    student.param("head.weight"),
    project(student.logits),
    project(student.logits, batch.labels, scale=2.0),
    call(torch.softmax, student.logits, dim=-1),
    stop_gradient(teacher.logits),
    stop_gradient(project(student.hidden_states[1])),
]


@pytest.mark.parametrize("value", REFS, ids=repr)
def test_a_ref_prints_as_the_code_that_made_it(value):
    again = eval(repr(value), NAMES)
    assert again == value and hash(again) == hash(value) and repr(again) == repr(value)


def test_refs_that_differ_are_not_equal():
    assert len(set(REFS)) == len(REFS)
    for i, a in enumerate(REFS):
        assert not any(a == b for j, b in enumerate(REFS) if j != i)


def test_an_index_is_not_equal_to_a_truth_value():
    assert student.logits[1] != student.logits[True]


def test_tensors_compare_by_identity():
    a, b = torch.ones(2), torch.ones(2)
    assert as_ref(a) == as_ref(a) and as_ref(a) != as_ref(b)
    assert call(torch.add, student.logits, a) == call(torch.add, student.logits, a)
    assert call(torch.add, student.logits, a) != call(torch.add, student.logits, b)


def test_functions_compare_by_identity():
    def one(ctx: Context):
        return ctx["student"]

    assert as_ref(one) == as_ref(one)
    assert as_ref(lambda ctx: 0) != as_ref(lambda ctx: 0)


FIELDS = ("name", "roots", "children", "compute", "parent", "item", "root", "module", "side", "fn")
FIELDS += ("args", "kwargs", "tensor", "tree", "layer", "part", "kind", "parameter", "node")
METHODS = {
    "tap",
    "param",
    "patched",
    "on",
    "attention",
    "attention_scores",
    "query",
    "key",
    "value",
}


@pytest.mark.parametrize("value", REFS, ids=repr)
@pytest.mark.parametrize("field", [*FIELDS, *sorted(METHODS)])
def test_no_field_and_no_method_of_a_ref_stands_in_the_way_of_an_output(value, field):
    path = getattr(value, field)
    assert isinstance(path, fkd.Ref) and path == value[field] and hash(path) == hash(value[field])
    assert eval(repr(path), NAMES) == path


def test_only_the_documented_methods_of_a_model_are_listed():
    assert {n for n in dir(student) if not n.startswith("_")} == METHODS
    assert not [n for n in dir(student.logits) if not n.startswith("_")]
    assert not [n for n in dir(batch) if not n.startswith("_")]
    for name in METHODS:
        assert getattr(student, name).__doc__ == getattr(type(student), name).__doc__
        assert "layer" in inspect.signature(student.attention).parameters


def test_an_output_that_is_called_like_a_method_is_reached_by_its_name():
    x = torch.ones(2)
    assert torch.equal(batch.value(context(batch={"value": x})), x)
    assert torch.equal(student.value(context(student={"value": x})), x)
    assert torch.equal((student.value * 2)(context(student={"value": x})), 2 * x)
    assert torch.equal(student.name(context(student={"name": x})), x)
    assert student["value"](3) == student.value(3) and repr(student.value(3)) == "student.value(3)"


def test_the_batch_is_the_batch_by_name():
    same = ref("batch")
    assert same == batch and hash(same) == hash(batch) and repr(same) == "batch"
    assert {same: 1}[batch] == 1
    assert ref("batch").attention == batch["attention"] and ref("student") == student


def test_refs_travel():
    for value in REFS:
        assert pickle.loads(pickle.dumps(value)) == value
        assert copy.deepcopy(value) == value


def test_refs_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        student._node = teacher
    with pytest.raises(dataclasses.FrozenInstanceError):
        student.logits.key = "loss"


def test_a_ref_is_no_sequence():
    with pytest.raises(TypeError, match=r"student\.hidden_states is a ref, not a sequence"):
        list(student.hidden_states)
    with pytest.raises(TypeError, match="Index it"):
        _, _ = student.hidden_states


@pytest.mark.parametrize(
    ("value", "roots"),
    [
        (student.hidden_states[3], {"student"}),
        (project(student.logits), {"student", "project"}),
        (call(torch.add, teacher.logits, batch.x), {"teacher", "batch"}),
        (student.param("w"), {"student"}),
        (student.tap("x"), {"student"}),
        (as_ref(torch.ones(1)), set()),
        (as_ref(lambda ctx: 0), None),
        (call(torch.add, lambda ctx: 0, student.logits), None),
    ],
)
def test_a_ref_says_what_it_depends_on(value, roots):
    assert node_roots(value) == roots


def test_output_paths():
    assert output_path(student.hidden_states[3]) == ("student", ("hidden_states", 3))
    assert output_path(student) == ("student", ())
    assert output_path(student.tap("x")[0]) is None


def test_walk_gives_children_first():
    value = project(student.hidden_states[1])
    assert list(walk(value))[-1] == value
    assert next(walk(value)) == student


class Pair(NamedTuple):
    logits: torch.Tensor
    states: tuple[torch.Tensor, ...]


@dataclasses.dataclass
class Record:
    logits: torch.Tensor


def context(**values):
    return Context(values, modules={"project": lambda x, scale=1.0: x * scale * 10})


def test_paths_through_mappings_records_and_sequences():
    x = torch.arange(6.0).reshape(2, 3)
    for output in ({"logits": x}, Pair(x, (x,)), Record(x)):
        assert torch.equal(student.logits(context(student=output)), x)
    ctx = context(student=Pair(x, (x, x + 1)), batch={"a name": x, "n": {"b": [x]}})
    assert torch.equal(student.states[-1][0](ctx), x[0] + 1)
    assert torch.equal(student.logits[:, 1:](ctx), x[:, 1:])
    assert torch.equal(batch["a name"](ctx), x)
    assert torch.equal(batch.n.b[0](ctx), x)


def test_a_bare_tensor_is_its_own_logits():
    x = torch.ones(2)
    assert student.logits(context(student=x)) is x
    assert student.output(context(student=x)) is x
    with pytest.raises(RefError, match=r"student\.hidden: no 'hidden' here.*a tensor \(2,\)"):
        student.hidden(context(student=x))


def test_a_method_of_a_tensor_is_no_output():
    with pytest.raises(RefError, match="no 'mean' here"):
        student.mean(context(student=torch.ones(2)))


def test_calls_fill_in_refs_and_pass_the_rest():
    x = torch.tensor([1.0, 2.0])
    ctx = context(student=x)
    assert torch.equal(call(torch.add, student, x, alpha=2)(ctx), 3 * x)
    assert torch.equal(call(torch.add, student, other=student)(ctx), 2 * x)
    assert torch.equal(call(torch.add, student, lambda c: c["student"])(ctx), 2 * x)
    assert torch.equal(project(student, scale=2.0)(ctx), 20 * x)


def test_stop_gradient_stops_the_gradient_and_nothing_else():
    x = torch.ones(2, requires_grad=True)
    stopped = stop_gradient(student.logits)(context(student=x))
    assert torch.equal(stopped, x) and not stopped.requires_grad


def test_what_is_no_ref_is_refused():
    with pytest.raises(TypeError, match=r"'logits' is not a ref.*without quotes"):
        as_ref("logits")
    with pytest.raises(TypeError, match=r"Call it on a ref: project\(student.logits\)"):
        as_ref(project)


@pytest.mark.parametrize(
    ("value", "output", "message"),
    [
        (student.logit, {"logits": 1, "loss": 2}, r"no 'logit' here. Did you mean 'logits'\?"),
        (student.states[7], {"states": (1, 2)}, r"out of range: there are 2.*0\.\.1"),
        (student.states[-3], {"states": (1, 2)}, r"out of range: there are 2"),
        (student.logits["x"], {"logits": (1, 2)}, r"no 'x' here"),
        (student[0], {"logits": 1}, r"a mapping with logits has no \[0\]"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_is_there(value, output, message):
    with pytest.raises(RefError, match=message):
        value(context(student=output))
