"""Models whose values are read from files when a state is made."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fkd
from fkd import batch, ref, student, teacher, term
from fkd.losses import kl, mse
from fkd.parallel import on_meta


class Tied(nn.Module):
    """An embedding that is the head, batch statistics, a buffer that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("scale", torch.full((), 3.0), persistent=False)

    def forward(self, x):
        return {"hidden": (h := self.norm(self.words(x))), "logits": self.scale * self.head(h)}


@pytest.fixture
def folder(tmp_path):
    """A model in two files, with an index, and the model."""
    torch.manual_seed(0)
    net = Tied()
    net.norm.running_mean.fill_(2.0)
    tensors = {n: x.clone() for n, x in net.state_dict().items() if n != "words.weight"}
    save_file({"head.weight": tensors.pop("head.weight")}, tmp_path / "one.safetensors")
    save_file(tensors, tmp_path / "two.safetensors")
    where = dict.fromkeys(tensors, "two.safetensors") | {"head.weight": "one.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return tmp_path, net


def objective(small, large):
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "slow": term(kl, student.logits, ref("slow").logits),
            "head": term(mse, student.param("head.weight"), teacher.param("head.weight")),
            "more": term(mse, student.hidden, teacher.hidden, where=batch > 0),
        },
        student=small,
        teacher=large,
        slow=fkd.ema("student", decay=0.5),
    )


def empty() -> Tied:
    with on_meta():
        return Tied()


def trained(goal):
    step = fkd.loops.train_step(goal, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    state = step.init(0)
    for _ in range(2):
        state, metrics = step(state, torch.arange(6))
    return state, metrics, fkd.loops.export(goal, state)


def test_a_module_on_meta_is_tied_and_keeps_its_buffers():
    net = empty()
    assert net.head.weight is net.words.weight and net.words.weight.is_meta
    assert net.scale == 3 and not net.norm.running_mean.is_meta
    assert isinstance(net.norm.weight, nn.Parameter) and net.norm.weight.requires_grad
    assert not nn.Linear(2, 2).weight.is_meta  # outside


def test_what_is_read_is_what_was_held(folder):
    path, net = folder
    one = trained(objective(fkd.trainable(net), fkd.frozen(net_copy(net))))
    first = empty()
    goal = objective(fkd.trainable(first, weights=path), fkd.frozen(empty(), weights=path))
    fkd.check(goal, torch.arange(6))
    other = trained(goal)
    assert all(p.is_meta for p in first.parameters())  # and nothing was put into the module
    for a, b in zip(one[0][:3], other[0][:3], strict=True):
        assert a.keys() == b.keys()
        for model in a:
            assert a[model].keys() == b[model].keys()
            assert all(torch.equal(a[model][n], b[model][n]) for n in a[model])
    assert {n: float(x) for n, x in one[1].items()} == {n: float(x) for n, x in other[1].items()}
    assert other[2].head.weight is other[2].words.weight and not other[2].words.weight.is_meta
    assert torch.equal(one[2].head.weight, other[2].head.weight) and other[2].scale == 3
    loss, _ = goal(goal.init(), torch.arange(6))
    expected = objective(fkd.trainable(net), fkd.frozen(net_copy(net)))
    assert loss == expected(expected.init(), torch.arange(6))[0]


def net_copy(net: Tied) -> Tied:
    other = Tied()
    other.load_state_dict(net.state_dict())
    return other


def test_values_take_the_dtype_of_the_module(folder):
    path, net = folder
    goal = objective(
        fkd.trainable(empty().double(), weights=path), fkd.frozen(empty().double(), weights=path)
    )
    parts = goal.init()
    assert parts.frozen["teacher"]["words.weight"].dtype is torch.float64
    assert torch.equal(parts.trainable["student"]["words.weight"], net.words.weight.double())


def test_a_run_goes_on_with_values_from_files(folder, tmp_path):
    path, net = folder

    def run(small, large, steps):
        step = fkd.loops.train_step(
            objective(small, large), lambda p: torch.optim.SGD(p, lr=0.1), compile=False
        )
        data = [torch.arange(6)] * 2
        where = {"checkpoint_dir": tmp_path / "run", "progress": False}
        return fkd.loops.run(step, step.init(0), data, steps=steps, **where)

    run(fkd.trainable(net), fkd.frozen(net_copy(net)), 2)
    more = run(fkd.trainable(empty(), weights=path), fkd.frozen(empty(), weights=path), 3)
    assert more.state.step == 3


def test_what_is_not_in_the_files_keeps_its_values(folder):
    path, _ = folder
    net = empty()
    net.extra = nn.Linear(2, 2)
    model = fkd.frozen(net, weights=path)
    assert model.stored is not None and not model.stored.holds("extra.weight")
    parts = objective(fkd.trainable(Tied()), model).init()
    assert torch.equal(parts.frozen["teacher"]["extra.weight"], net.extra.weight)


def test_wrong_files_are_refused_before_anything_is_read(folder, tmp_path):
    path, _ = folder
    net = empty()
    with on_meta():
        net.extra = nn.Linear(2, 2)
        net.norm = nn.BatchNorm1d(5)
    with pytest.raises(ValueError, match=r"'extra.weight' is not in the files") as error:
        fkd.frozen(net, weights=path)
    assert "'norm.weight' has the shape [4] there, and [5] here" in str(error.value)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"there is no file \*.safetensors"):
        fkd.trainable(net, weights=tmp_path / "none")
    with pytest.raises(ValueError, match="nothing there has the name of a parameter"):
        fkd.frozen(nn.Conv1d(2, 2, 1), weights=path)
    with torch.device("meta"):
        net = Tied()
    with pytest.raises(ValueError, match="the buffer 'scale' is on the meta device and in no file"):
        fkd.frozen(net, weights=path)


def test_a_module_without_values_is_refused():
    goal = objective(fkd.trainable(Tied()), fkd.frozen(empty()))
    with pytest.raises(
        fkd.ObjectiveError, match=r"'teacher': has 'words.weight' on the meta device"
    ):
        goal.init()
