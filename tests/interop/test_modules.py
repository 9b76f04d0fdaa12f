"""An objective bound to modules: gradients land in them, as from a loss written by hand."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fkd
from fkd import batch, module, student, teacher, term
from fkd.interop.modules import bind
from fkd.loops import train_step
from fkd.losses import attention_kl, cross_entropy, dino, dino_init, head, kl, mse

COMPILE = {"backend": "aot_eager"}


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # No bias: batch statistics cancel it, and Adam would follow the rounding of its gradient.
        self.first = nn.Linear(4, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.norm(self.first(x)))
        return {"hidden": hidden, "logits": self.head(hidden)}


class Headed(nn.Module):
    """Gives the input of its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 12, bias=False)

    def forward(self, x: Tensor) -> Any:
        return {"hidden": torch.tanh(self.body(x))}


class Setting:
    """Two models, an adapter, an objective over them, batches, and the loss written by hand."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student, self.teacher = Net(6), Net(10)
        self.project = nn.Linear(6, 10)
        self.batches = [
            {"x": torch.randn(8, 4), "labels": torch.randint(3, (8,)), "mask": torch.rand(8) > 0.3}
            for _ in range(5)
        ]
        terms = {
            "kd": term(
                kl, student.logits, teacher.logits, temperature=fkd.schedules.linear(4.0, 1.0, 4)
            ),
            "labels": term(cross_entropy, student.logits, batch.labels, weight=0.5),
            "hidden": term(
                mse, module("project")(student.hidden), teacher.hidden, where=batch.mask
            ),
        }
        self.objective = fkd.Objective(
            terms,
            student=fkd.trainable(self.student, inputs=lambda b: b["x"]),
            teacher=fkd.frozen(self.teacher, inputs=lambda b: b["x"]),
            project=fkd.trainable(self.project),
        )

    @property
    def trained(self) -> list[nn.Module]:
        return [self.student, self.project]

    def by_hand(self, fields: Any, step: int) -> Tensor:
        s, t = self.student(fields["x"]), self.teacher.eval()(fields["x"])
        temperature = 4.0 - 3.0 * min(step / 4, 1.0)
        p = (t["logits"] / temperature).softmax(-1)
        q = (s["logits"] / temperature).log_softmax(-1)
        soft = temperature**2 * F.kl_div(q, p, reduction="batchmean")
        squares = ((self.project(s["hidden"]) - t["hidden"]) ** 2).mean(-1)
        hidden = squares[fields["mask"]].mean()
        return soft + 0.5 * F.cross_entropy(s["logits"], fields["labels"]) + hidden


def tensors(setting: Setting) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i, part in enumerate(setting.trained):
        found |= {f"{i}.{n}": x for n, x in part.state_dict().items()}
    return found


@pytest.mark.compile
@pytest.mark.parametrize("compile", [False, COMPILE], ids=["eager", "compiled"])
@pytest.mark.parametrize("call", ["forward", "backward"])
def test_training_agrees_with_a_loop_by_hand(compile: Any, call: str) -> None:
    ours, plain = Setting(), Setting()
    teacher_before = copy.deepcopy(ours.teacher.state_dict())
    loss_fn = bind(ours.objective, compile=compile)
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=1e-2)
    for step, fields in enumerate(ours.batches):
        if call == "forward":
            loss, _ = loss_fn(fields, step)
            loss.backward()
        else:
            loss, _ = loss_fn.backward(fields, step)
        optimizer.step()
        optimizer.zero_grad()
    reference = torch.optim.Adam([p for m in plain.trained for p in m.parameters()], lr=1e-2)
    for step, fields in enumerate(plain.batches):
        plain.by_hand(fields, step).backward()
        reference.step()
        reference.zero_grad()
    expected = tensors(plain)
    for name, value in tensors(ours).items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    for name, value in ours.teacher.state_dict().items():
        assert torch.equal(value, teacher_before[name]), name
    assert all(p.grad is None for p in ours.teacher.parameters())


def test_gradients_accumulate_like_those_of_a_module() -> None:
    setting = Setting()
    loss_fn = bind(setting.objective)
    loss_fn(setting.batches[0])[0].backward()
    loss_fn.backward(setting.batches[1])
    found = [p.grad.clone() for m in setting.trained for p in m.parameters() if p.grad is not None]
    plain = Setting()
    for fields in plain.batches[:2]:
        plain.by_hand(fields, 0).backward()
    expected = [p.grad for m in plain.trained for p in m.parameters()]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_eval_mode_uses_running_statistics_and_leaves_them() -> None:
    setting = Setting()
    loss_fn = bind(setting.objective)
    loss_fn(setting.batches[0])
    setting.student.eval()
    before = copy.deepcopy(setting.student.state_dict())
    loss, _ = loss_fn(setting.batches[1], 4)
    torch.testing.assert_close(loss, setting.by_hand(setting.batches[1], 4))
    for name, value in setting.student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_value_has_no_graph_but_through_the_loss() -> None:
    setting = Setting()
    loss, aux = bind(setting.objective)(setting.batches[0])
    assert loss.requires_grad
    assert not any(m.total.requires_grad for m in aux.terms.values())


def test_modules_given_by_name_take_the_place_of_the_objectives() -> None:
    setting = Setting()
    other = copy.deepcopy(setting.student)
    loss_fn = bind(setting.objective, student=other)
    loss_fn(setting.batches[0])[0].backward()
    assert other.head.weight.grad is not None
    assert setting.student.head.weight.grad is None


def test_only_trainable_models_are_submodules() -> None:
    loss_fn = bind(Setting().objective)
    assert {name.split(".")[1] for name, _ in loss_fn.named_parameters()} == {"student", "project"}


def test_parameters_frozen_later_get_no_gradient() -> None:
    setting = Setting()
    loss_fn = bind(setting.objective)
    setting.student.first.requires_grad_(False)
    loss_fn(setting.batches[0])[0].backward()
    assert setting.student.first.weight.grad is None
    assert setting.student.head.weight.grad is not None


def test_autocast_holds_for_models_and_losses_stay_in_float32() -> None:
    setting = Setting()
    seen: list[torch.dtype] = []

    def spy(student_x: Tensor, teacher_x: Tensor) -> Tensor:
        seen.append(student_x.dtype)
        return (student_x.float() - teacher_x.float()).square().mean(-1)

    objective = fkd.Objective(
        term(spy, student.logits, teacher.logits),
        student=fkd.trainable(setting.student, inputs=lambda b: b["x"]),
        teacher=fkd.frozen(Net(10), inputs=lambda b: b["x"]),
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = bind(objective)(setting.batches[0])
    assert seen[-1] is torch.bfloat16 and loss.dtype is torch.float32


def test_the_state_of_a_stateful_loss_lives_in_the_bound_module() -> None:
    torch.manual_seed(0)
    objective = fkd.Objective(
        term(dino, student.logits, teacher.logits, state=dino_init(3)),
        student=fkd.trainable(nn.Linear(4, 3)),
        teacher=fkd.frozen(nn.Linear(4, 3)),
    )
    loss_fn = bind(objective)
    before = copy.deepcopy(loss_fn.state_dict())
    loss_fn(torch.randn(8, 4))
    changed = [n for n, x in loss_fn.state_dict().items() if not torch.equal(x, before[n])]
    assert changed and all(n.startswith("loss_state") for n in changed)


def test_mistakes_are_reported_by_name() -> None:
    setting = Setting()
    with pytest.raises(ValueError, match=r"no model \['pupil'\]; the objective has"):
        bind(setting.objective, pupil=Net(6))
    with pytest.raises(fkd.ObjectiveError, match="lables"):
        broken = fkd.Objective(
            term(cross_entropy, student.logits, batch.lables),
            student=fkd.trainable(setting.student, inputs=lambda b: b["x"]),
        )
        bind(broken)(setting.batches[0])


def follows(decay: Any) -> fkd.Objective:
    """A student with batch statistics, and a teacher that follows it."""
    torch.manual_seed(0)
    return fkd.Objective(
        {
            "labels": term(cross_entropy, student.logits, batch.labels),
            "kd": term(kl, student.logits, teacher.logits, weight=2.0),
        },
        student=fkd.trainable(Net(6), inputs=lambda b: b["x"]),
        teacher=fkd.ema("student", decay=decay),
    )


@pytest.mark.parametrize("decay", [0.5, fkd.schedules.linear(0.5, 0.9, 4)], ids=["fixed", "moving"])
def test_an_average_follows_as_in_a_step(decay: Any) -> None:
    batches = Setting().batches
    step = train_step(follows(decay), lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    state = step.init()
    for fields in batches:
        state, _ = step(state, fields)
    bound = bind(follows(decay))
    optimizer = torch.optim.SGD(bound.parameters(), lr=0.1)
    for i, fields in enumerate(batches):
        bound(fields, i)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        bound.update_ema(i)
    torch.testing.assert_close(
        dict(bound.models.student.named_parameters()), state.trainable["student"]
    )
    expected = {**state.frozen["teacher"], **state.buffers["teacher"]}
    saved = bound.state_dict()
    found = {n: saved[f"averages.teacher.{n.replace('.', '/')}"] for n in expected}
    torch.testing.assert_close(found, expected)
    assert len(found) == len(bound.models.student.state_dict())
    resumed = bind(follows(decay))
    resumed.load_state_dict(saved)
    torch.testing.assert_close(resumed(batches[0], 3)[0], bound(batches[0], 3)[0])


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
def test_the_backward_of_a_chunked_head_is_used_in_the_graph() -> None:
    """torch.func.grad in a compiled graph would differentiate its forward instead."""

    def gradients(compile: Any) -> list[Tensor | None]:
        torch.manual_seed(0)
        bodies = {n: Headed() for n in ("student", "teacher")}
        divergence = term(
            head.head_divergence,
            student.hidden, student.param("head.weight"),
            teacher.hidden, teacher.param("head.weight"),
            divergence=head.kl(), chunk_size=3,
        )  # fmt: skip
        objective = fkd.Objective(
            {"head": divergence},
            student=fkd.trainable(bodies["student"]),
            teacher=fkd.frozen(bodies["teacher"]),
        )
        bound = bind(objective, compile=compile)
        bound.backward({"x": torch.randn(7, 4)})
        return [p.grad for p in bound.parameters()]

    expected = gradients(False)
    assert all(g is not None and g.abs().sum() > 0 for g in expected)
    torch.testing.assert_close(gradients(COMPILE), expected)


def parallel_worker(rank: int, port: int, folder: str) -> None:
    """One process of two: trains on its half, and writes the weights that it has after it."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = train_in_halves(lambda m: nn.parallel.DistributedDataParallel(m), [rank])
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def train_in_halves(wrap: Any, halves: list[int]) -> dict[str, Tensor]:
    """Three updates by the mean of the gradients of the given halves of each batch."""
    torch.manual_seed(0)
    objective = fkd.Objective(
        term(kl, student.logits, teacher.logits),
        student=fkd.trainable(nn.Linear(4, 3)),
        teacher=fkd.frozen(nn.Linear(4, 3)),
    )
    loss_fn = wrap(bind(objective))
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        parts = torch.randn(8, 4, generator=generator).chunk(2)
        for half in halves:
            (loss_fn(parts[half], step)[0] / len(halves)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {n.removeprefix("module."): x for n, x in loss_fn.state_dict().items()}


@pytest.mark.slow
def test_data_parallel_training_agrees_on_all_ranks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(parallel_worker, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, train_in_halves(lambda m: m, [0, 1]))


@pytest.mark.compile
def test_one_compilation_for_a_whole_run() -> None:
    setting = Setting()
    compiled: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    loss_fn = bind(setting.objective, compile={"backend": counting})
    for step, fields in enumerate(setting.batches):
        loss_fn(fields, step)[0].backward()
    assert len(compiled) == 1


@pytest.mark.compile
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_bound_objective_can_be_a_part_of_the_users_own_graph(mode: str) -> None:
    """Values, gradients and batch statistics are those of `bind(objective, compile=True)`."""
    ours, theirs = Setting(), Setting()
    bound, inside = bind(ours.objective, compile=COMPILE), bind(theirs.objective)
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    whole = torch.compile(inside, backend=counting, fullgraph=True)
    for setting in (ours, theirs):
        getattr(setting.student, mode)()
    for step, fields in enumerate(ours.batches * 3):
        loss, aux = bound(fields, step)
        loss.backward()
        found, found_aux = whole(fields, step)
        found.backward()
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(found_aux.terms, aux.terms)
    grads = {n: p.grad for n, p in bound.named_parameters()}
    torch.testing.assert_close({n: p.grad for n, p in inside.named_parameters()}, grads)
    torch.testing.assert_close(tensors(theirs), tensors(ours))
    assert len(graphs) <= 2


@pytest.mark.compile
def test_averages_and_states_of_losses_are_right_in_the_users_own_graph() -> None:
    def trained(whole: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        objective = fkd.Objective(
            term(dino, student.logits, teacher.logits, state=dino_init(3)),
            student=fkd.trainable(nn.Linear(4, 3)),
            teacher=fkd.ema("student", decay=0.5),
        )
        bound = bind(objective)
        call = torch.compile(bound, backend="aot_eager", fullgraph=True) if whole else bound
        optimizer = torch.optim.SGD(bound.parameters(), lr=0.1)
        for i in range(4):
            call(torch.randn(8, 4))[0].backward()
            optimizer.step()
            optimizer.zero_grad()
            bound.update_ema(i)
        return dict(bound.state_dict())

    torch.testing.assert_close(trained(True), trained(False))


@pytest.mark.compile
def test_a_bound_objective_is_exported_with_value_and_gradient() -> None:
    ours, theirs = Setting(), Setting()
    bound = bind(ours.objective)
    exported = torch.export.export(bind(theirs.objective), (theirs.batches[0],)).module()
    fields = ours.batches[1]  # not the one that was traced
    loss, aux = bound(fields)
    loss.backward()
    found, found_aux = exported(fields)
    found.backward()
    torch.testing.assert_close((found, found_aux.terms), (loss, aux.terms))
    grads = {n: p.grad for n, p in bound.named_parameters()}
    torch.testing.assert_close({n: p.grad for n, p in exported.named_parameters()}, grads)


@pytest.mark.compile
def test_a_transformers_model_is_a_part_of_the_users_own_graph() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes: Any = dict(
        hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=50,
        max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    fields = {
        "input_ids": torch.randint(50, (2, 8)),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
    }

    def gradients(whole: bool) -> Any:
        torch.manual_seed(0)
        small, large = (
            BertForSequenceClassification(BertConfig(num_hidden_layers=n, **sizes)) for n in (1, 2)
        )
        terms = {
            "kd": term(kl, student.logits, teacher.logits),
            "hidden": term(mse, student.hidden_states[1], teacher.hidden_states[2]),
            "attention": term(attention_kl, student.attention(0), teacher.attention(1)),
        }
        objective = fkd.Objective(terms, student=fkd.trainable(small), teacher=fkd.frozen(large))
        bound = bind(objective)
        call = torch.compile(bound, backend="aot_eager", fullgraph=True) if whole else bound
        loss, _ = call(fields)
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in bound.named_parameters()}

    torch.testing.assert_close(gradients(True), gradients(False))
