"""Laws of operations on refs: they print as the code that makes them, compare by it, and compute
what the same code computes of the values."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import fkd
from fkd import Context, batch, call, module, ref, student, teacher
from fkd._base.errors import RefError
from fkd._refs.refs import roots, walk

X = torch.tensor([[1.5, -2.0, 0.5], [0.25, 3.0, -1.0]])
Y = torch.tensor([[2.0, 1.0, -0.5], [1.0, -1.0, 4.0]])
VALUES = {
    "student": {"logits": X, "states": (X, Y)},
    "teacher": {"logits": Y},
    "batch": {
        **{"labels": torch.tensor([-100, 2]), "mask": torch.tensor([True, False])},
        **{"w": torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 3.0]]), "i": torch.tensor([1, 0])},
        **{"n": torch.tensor([3, 1]), "other": torch.tensor([True, True])},
    },
}
CODE = """
student.logits / 2
2 / student.logits
student.logits * 2
2 * student.logits
student.logits - 1
1 - student.logits
student.logits + teacher.logits
student.logits - teacher.logits - 1
student.logits - (teacher.logits - 1)
student.logits - (teacher.logits + 1)
(student.logits + teacher.logits) / 2
student.logits + teacher.logits / 2
(student.logits - 1) * (teacher.logits + 1)
student.logits / (teacher.logits * 2)
student.logits / teacher.logits / 2
-student.logits
-student.logits * 2
2 * -student.logits
-(student.logits * 2)
-(student.logits + 1)
--student.logits
+student.logits
student.logits - -1
student.logits ** 2
-student.logits ** 2
(-student.logits) ** 2
2 ** student.logits
(-2) ** batch.labels
2 ** -student.logits
student.logits ** -1
(student.logits ** 2) ** 3
student.logits ** teacher.logits ** 3
(student.logits + 1) ** 2
student.logits ** (teacher.logits - 1)
student.logits @ batch.w
(student.logits + 1) @ batch.w * 2
student.logits @ (batch.w + 1)
batch.labels // 2
batch.labels % 7
7 % batch.n
-7 // batch.n
batch.labels != -100
batch.labels == 2
batch.labels != True
student.logits > 0
student.logits >= teacher.logits
student.logits < teacher.logits
student.logits <= 0.5
(student.logits > 0) == True
~batch.mask
~(batch.labels != -100)
~~batch.mask
batch.mask & (batch.labels != -100)
batch.mask | batch.other & (batch.labels > 0)
(batch.mask | batch.other) & (batch.labels > 0)
batch.mask ^ batch.other
(batch.mask ^ batch.other) & batch.mask | batch.other
batch.n & 2
3 | batch.n
abs(student.logits)
abs(student.logits - 1) / 2
-abs(student.logits)
(student.logits - teacher.logits).abs()
student.logits[..., :2]
student.logits[:, 1:]
student.logits[0]
student.logits[:, ::2]
student.logits[:, None]
student.logits[[0, 1], 1]
student.logits[0,]
student.logits[()]
student.logits[batch.mask]
student.logits[:, batch.i]
student.logits[batch.i, batch.i]
student.logits[..., batch.i] * 2
student.states[1] - student.states[0]
student.states[1:][0]
(student.logits / 2)[0]
(-student.logits)[:, 0]
(student.logits + teacher.logits)[batch.mask]
student.logits.mean(-1)
student.logits.mean(dim=-1, keepdim=True)
(student.logits / 2).softmax(-1)
(student.logits ** 2).sum(-1).sqrt()
student.logits.softmax(-1).max(-1)[0]
student.logits.gather(-1, batch.i[:, None])
student.logits.masked_fill(~batch.mask[:, None], 0.0)
student.logits.to(torch.float64)
student.logits.T @ teacher.logits
student.logits.shape[-1]
student.logits.logsumexp(-1) / student.logits.shape[-1]
student.logits * float('inf')
1.5 * student.logits - 1e-06
call(torch.softmax, student.logits / 2, -1)
call(torch.add, student.logits, -teacher.logits, alpha=2)
call(F.one_hot, batch.labels * 0, 3).float() * 0.9
student["logits"] * 2
""".strip().splitlines()
NAMES = {**vars(fkd), "torch": torch, "F": F, "softmax": torch.softmax, "add": torch.add}
NAMES["one_hot"] = F.one_hot


class Plain(dict):
    """Values with attributes, of which Python computes what refs should say."""

    __getattr__ = dict.__getitem__


def plain_names():
    values = {name: Plain(found) for name, found in VALUES.items()}
    return {**NAMES, **values, "call": lambda fn, *args, **kwargs: fn(*args, **kwargs)}


def context(**values):
    return Context(values or VALUES, modules={"project": lambda x: x * 10})


@pytest.mark.parametrize("code", CODE)
def test_code_on_refs_says_and_computes_what_it_does_on_values(code):
    value = eval(code, NAMES)
    assert isinstance(value, fkd.Ref)
    shown = repr(value).replace("student['logits']", "student.logits")
    again = eval(repr(value), NAMES)
    assert again == value and hash(again) == hash(value) and repr(again) == repr(value)
    if not code.startswith(("call(", 'student["')):
        assert shown == code.replace("call(F.", "call(")
    expected = eval(code, plain_names())
    found = value(context())
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    else:
        assert found == expected


@pytest.mark.parametrize("code", CODE)
def test_operations_travel(code):
    value = eval(code, NAMES)
    for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
        assert again == value and hash(again) == hash(value)


def test_operations_that_differ_are_not_equal():
    values = list(dict.fromkeys(eval(code, NAMES) for code in CODE))
    assert len(values) == len({repr(v) for v in values}) >= len(CODE) - 1
    x = student.logits
    for a, b in [(x * 2, x * 2.0), (x * 2, 2 * x), (x + 1, x - 1), (x[1], x[True]), (x * 1, x)]:
        assert a != b and not a == b


def test_parentheses_stand_where_they_are_needed_for_every_pair_of_operators():
    symbols = "== != < <= > >= | ^ & + - * / // % @ **".split()
    x, y, z = "student.a", "student.b", "student.c"
    for outer in symbols:
        for inner in symbols:
            if inner in ("==", "!=") or outer in ("==", "!="):
                continue  # of two refs, these are a bool
            for code in (f"({x} {inner} {y}) {outer} {z}", f"{x} {outer} ({y} {inner} {z})"):
                value = eval(code, NAMES)
                assert eval(repr(value), NAMES) == value, code
        for prefix in "+-~":
            for code in (f"({prefix}{x}) {outer} 2", f"2 {outer} ({prefix}{x})"):
                value = eval(code, NAMES)
                assert eval(repr(value), NAMES) == value, code
                value = eval(f"{prefix}({code})", NAMES)
                assert eval(repr(value), NAMES) == value


def test_equality_between_refs_is_a_bool_and_beside_a_number_or_tensor_a_ref():
    assert (student.logits == student.logits) is True
    assert (student.logits == teacher.logits) is False
    assert (student.logits != student.logits) is False
    assert (student.logits == "logits") is False and (student.logits != None) is True  # noqa: E711
    mask = torch.tensor([0, 2])
    for value in (batch.labels == 2, batch.labels != -100, batch.labels == mask):
        assert isinstance(value, fkd.Ref)
    assert torch.equal((mask == batch.labels)(context()), torch.tensor([False, True]))
    assert (batch.labels == 2) in {batch.labels == 2: 1}
    assert call(torch.eq, batch.labels, batch.n)(context()).tolist() == [False, False]


def test_numbers_of_numpy_are_numbers():
    two = X.double().numpy()[0, 0] + 0.5
    for value in (two * student.logits, X.numpy()[0, 0] * student.logits, student.x == two):
        assert isinstance(value, fkd.Ref) and "np." not in repr(value)
    assert repr(two * student.logits) == "2.0 * student.logits"


def test_python_adds_up_refs():
    assert torch.equal(sum([student.logits, teacher.logits])(context()), X + Y)


def test_nan_is_the_same_code_as_nan():
    nan = float("nan")
    assert student.logits * nan == student.logits * float("nan")
    assert len({student.logits * nan, student.logits * float("nan")}) == 1
    assert student.x + 0.0 != student.x + -0.0


def test_tensors_stand_on_both_sides_and_compare_by_identity():
    t = torch.tensor([[2.0, 4.0, 8.0]])
    ctx = context()
    pairs = [(t + student.logits, t + X), (student.logits + t, X + t), (t - student.logits, t - X)]
    pairs += [(t * student.logits, t * X), (t / student.logits, t / X), (t > student.logits, t > X)]
    pairs += [
        (t**student.logits, t**X),
        (t @ student.logits.T, t @ X.T),
        (t < teacher.logits, t < Y),
    ]
    pairs += [(t[:, batch.i], t[:, VALUES["batch"]["i"]]), (t // teacher.logits, t // Y)]
    pairs += [(t % teacher.logits, t % Y), (torch.where(t > 2, student.logits, t), None)]
    for value, expected in pairs:
        assert isinstance(value, fkd.Ref)
        if expected is not None:
            assert torch.equal(value(ctx), expected)
    assert t + student.logits == t + student.logits
    assert t + student.logits != t.clone() + student.logits
    assert repr(2 * (t + student.logits)) == "2 * (<tensor (1, 3)> + student.logits)"


def test_torch_functions_of_refs_are_calls():
    x = student.logits
    assert torch.softmax(x, -1) == call(torch.softmax, x, -1)
    assert repr(F.gelu(x / 2)) == "call(gelu, student.logits / 2)"
    ctx = context()
    assert torch.equal(torch.stack([x, teacher.logits])(ctx), torch.stack([X, Y]))
    assert torch.equal(torch.einsum("ab,ab->a", x, teacher.logits)(ctx), (X * Y).sum(-1))
    assert torch.equal(
        torch.where(batch.mask[:, None], x, 0.0)(ctx), X * torch.tensor([[1.0], [0]])
    )
    assert torch.equal(F.softmax(x, dim=-1, dtype=torch.float64)(ctx), X.double().softmax(-1))
    assert torch.equal(torch.nn.Softmax(-1)(x)(ctx), X.softmax(-1))
    assert torch.equal(torch.split(x, 1)[1](ctx), X[1:])


def test_modules_and_functions_of_refs_take_operations():
    ctx = context()
    project = module("project")
    assert torch.equal((project(student.logits / 2) + 1)(ctx), X * 5 + 1)
    assert repr(project(student.logits)[:, 0] - 1) == "project(student.logits)[:, 0] - 1"
    assert roots(project(student.logits) - teacher.logits) == {"project", "student", "teacher"}
    assert roots(student.x[batch.mask]) == {"student", "batch"}
    assert torch.equal(fkd.stop_gradient(-student.logits)(ctx), -X)


def test_refs_are_filled_in_at_any_depth():
    def total(pairs, *, scale):
        return sum(a * b for a, b in pairs["them"]) * scale[0]

    value = call(
        total, {"them": [(student.logits, 2), (teacher.logits, 3)]}, scale=(batch.w[0, 1],)
    )
    assert torch.equal(value(context()), (X * 2 + Y * 3) * 2)
    moments = torch.max(student.logits, dim=-1)  # a named tuple
    assert torch.equal(call(lambda pair: pair.values, moments)(context()), X.max(-1).values)
    cut = call(lambda a, s: a[s], student.logits, slice(batch.n[1], None))
    assert torch.equal(cut(context()), X[1:])


def test_each_part_is_walked_once():
    shared = student.logits.exp()
    value = shared / shared.sum(-1, keepdim=True)
    assert len(list(walk(value))) == 5
    for _ in range(40):
        value = value + value
    assert len(list(walk(value))) == 45


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bool(student.logits > 0), r"student\.logits > 0 is a ref.*&, \| and ~"),
        (lambda: not batch.mask, r"batch\.mask is a ref: Python cannot decide by it"),
        (lambda: batch.mask and batch.other, r"&, \| and ~"),
        (lambda: 0 < student.logits < 1, r"a < b < c"),
        (lambda: len(student.hidden_states), r"its length is not known.*fkd\.call"),
        (lambda: list(batch.labels), r"not a sequence.*fkd\.call"),
        (lambda: 3 in batch.labels, r"what is in it is not known.*fkd\.call"),
        (lambda: float(student.loss), r"student\.loss is a ref, not a number.*fkd\.call"),
        (lambda: int(batch.step), r"not a number"),
        (lambda: range(batch.n), r"not a number"),
        (lambda: student.logits + "x", r"'x' cannot stand here.*fkd\.call\(fn, a, b\)"),
        (lambda: None * student.logits, r"None cannot stand here"),
        (lambda: student.logits * (student.a == student.b), r"False cannot stand.*torch\.eq"),
        (lambda: (student.a != student.b) & batch.mask, r"True cannot stand here.*torch\.ne"),
        (lambda: student.logits * torch.softmax, r"fkd\.call\(fn, student\.logits\)"),
        (lambda: student.logits + X.numpy(), r"torch\.as_tensor"),
        (lambda: X.numpy() * student.logits, r"torch\.as_tensor"),
        (lambda: batch.labels == X.numpy(), r"torch\.as_tensor"),
        (lambda: student.logits * module("project"), r"module\('project'\) cannot stand here"),
        (lambda: student.logits @ torch.nn.Linear(2, 2).weight, r"never trained.*fkd\.module"),
        (
            lambda: torch.nn.Linear(3, 2)(student.logits),
            r"linear is given a trainable.*fkd\.module",
        ),
        (
            lambda: call(torch.nn.Linear(3, 2), student.logits),
            r"Linear with parameters.*fkd\.module",
        ),
        (lambda: call(torch.add, student.x, torch.nn.Linear(2, 2).bias), r"never trained"),
        (lambda: student.logits.add_(1), r"student\.logits\.add_ changes.*Use add"),
        (lambda: torch.relu_(student.logits), r"relu_ changes a tensor in place.*Use relu"),
        (lambda: F.relu(student.logits, inplace=True), r"relu changes a tensor in place"),
        (lambda: torch.ones(2).add_(student.logits), r"add_ changes a tensor in place"),
        (lambda: torch.nn.Dropout(0.1)(student.x), r"dropout is given a ref.*fkd\.module"),
        (lambda: F.batch_norm(student.x, X[0], X[0]), r"statistics.*fkd\.module"),
        (lambda: student(batch.x), r"student is a ref, which is not called.*fkd\.module"),
        (lambda: student.logits[0](1), r"only its methods are"),
        (lambda: call(student.logits, -1), r"fn is student\.logits; a function is expected"),
        (lambda: call(torch.add, student.x, module("p")), r"Call it on a ref: p\(student"),
        (lambda: call(torch.add, student.x, torch.nn.ReLU()), r"fkd\.module\('name'\)"),
    ],
)
def test_what_cannot_work_says_what_to_write(build, message):
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.plain  # the run-time type check refuses these with words of its own
def test_models_and_modules_are_named():
    with pytest.raises(TypeError, match=r"ref: name is student\.logits.*fkd\.ref\('name'\)"):
        ref(student.logits)
    with pytest.raises(TypeError, match=r"module: name is a Linear.*name=fkd\.trainable\(module\)"):
        module(torch.nn.Linear(2, 2))


@pytest.mark.plain  # the run-time type check refuses it with words of its own
def test_a_function_is_called_and_not_its_name():
    with pytest.raises(TypeError, match=r"fn is 'mean'; a function is expected"):
        call("mean", student.logits)


def test_refs_are_not_assigned_to():
    with pytest.raises(TypeError, match="never changed in place"):
        student.logits[0] = 1
    with pytest.raises(AttributeError, match=r"refs never change.*logits = student\.logits"):
        student.logits += 1
    with pytest.raises(AttributeError, match="refs never change"):
        ref("roberta").x = 1
    t = torch.ones(2, 3)
    with pytest.raises(TypeError, match="in place"):
        t.add_(student.logits)
    with pytest.raises(TypeError, match="in place"):
        t[0] = student.logits
    assert t.sum() == 6
    t += student.logits  # a new ref, called t
    assert torch.equal(t(context()), X + 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: student.logits == teacher.logits, r"torch\.eq"),
        (lambda: 3, r"3 is not a ref.*torch\.tensor\(3\)"),
        (lambda: 0.5, r"torch\.tensor\(0\.5\)"),
        (lambda: torch.nn.Linear(2, 2), r"fkd\.module\('name'\)"),
        (lambda: torch.nn.Linear, r"Linear is not a ref. It is a class"),
        (lambda: fkd.schedules.linear(0.0, 1.0, 10), r"A schedule moves a weight"),
        (lambda: torch.nn.Linear(2, 2).weight, r"never trained"),
        (lambda: module("project"), r"project\(student\.logits\)"),
        (lambda: "student.logits", r"'student\.logits' is not a ref.*without quotes"),
    ],
)
def test_what_is_not_a_ref_says_what_to_write(build, message):
    with pytest.raises(TypeError, match=message):
        fkd.term(fkd.losses.kl, student.logits, build())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            student.logits.meen(-1),
            r"student\.logits\.meen\(\.\.\.\): a tensor \(2, 3\) has no.*'mean'",
        ),
        (student.logits(), r"student\.logits is a value, not a method: leave out the brackets"),
        (student.logits.shape(), r"leave out the brackets"),
        (student.logits.mean, r"no 'mean' here.*A method is called: student\.logits\.mean\("),
        (student.states.index, r"no names.*A method is called"),
        (student.tap, r"no 'tap' here.*A method is called: student\.tap\(\.\.\.\)"),
        (student.attention[0], r"student\.attention: no 'attention'.*student\.attention\("),
        (~batch.n, r"~batch\.n: ~ of torch\.int64.*batch\.n == 0"),
        (student.states[batch.i], r"student\.states\[batch\.i\]: a tuple of 2 has no"),
    ],
)
def test_what_shows_on_values_says_what_to_write(value, message):
    with pytest.raises((RefError, TypeError), match=message):
        value(context())


def test_a_bare_tensor_says_what_it_is_called():
    with pytest.raises(RefError, match=r"student\.logit: no 'logit' here.*written student\.logits"):
        student.logit(context(student=X))
    with pytest.raises(RefError, match=r"batch\.labels: no 'labels' here.*written batch"):
        batch.labels(context(batch=X))
