"""What a checkpoint knows of an objective, beyond its repr."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fkd
from fkd import student, teacher, term
from fkd.loops._base.errors import MismatchError
from fkd.loops._data.epochs import Mapped
from fkd.loops._run.settings import settings
from fkd.losses import kl

from ..training import Net, adamw, batches

LOSS = """
import random, types, dataclasses, enum, torch
from torch import nn

@dataclasses.dataclass
class Settings:
    power: float = 2.0

class Kind(enum.Enum):
    SUM = 1

class Fixed:
    shift = 0.5

class Weighted:
    def __init__(self): self.factor, self.calls = 2.0, 0
    def __call__(self, a, b):
        self.calls += 1
        return self.factor * (a - b).abs().mean(-1)

SCALE, NAME, CALLS, PAIR = 2.0, "mean", 0, (1, 2)
table = torch.ones(3)
options = {"alpha": 0.1, "parts": [1.0, 2.0]}
namespace = types.SimpleNamespace(beta=0.3, inner=types.SimpleNamespace(gamma=0.4))
settings, fixed, kind = Settings(), Fixed(), Kind.SUM
log, noise = [], random.Random(0)
weighted = Weighted()

def power(x):
    return x.abs() ** settings.power

def part(x):
    return PAIR[0] * power(x) + fixed.shift

def loss(a, b):
    global CALLS
    CALLS += 1
    x = SCALE * (a - b) + options["alpha"] + namespace.inner.gamma + torch.pi + len(NAME)
    return getattr(part(x * table), NAME)(-1) * (1 if kind is Kind.SUM else 2)

def logging(a, b):
    log.append(len(log))
    return SCALE * (a - b).abs().mean(-1)
"""


def _objective(name: str, change: str = "") -> fkd.Objective:
    scope: dict[str, Any] = {"__name__": "code_of_a_user"}
    exec(compile(LOSS, "code_of_a_user", "exec", dont_inherit=True), scope)
    exec(change, scope)
    torch.manual_seed(0)
    return fkd.Objective(
        {"own": term(scope[name], student.logits, teacher.logits)},
        student=fkd.trainable(Net(6)),
        teacher=fkd.frozen(Net(8)),
    )


def _start(folder: Path, objective: fkd.Objective, steps: int = 1) -> None:
    step = fkd.loops.train_step(objective, adamw, compile=False)
    fkd.loops.run(step, step.init(3), batches(), steps=steps, checkpoint_dir=folder, progress=False)


@pytest.mark.parametrize(
    ("name", "change", "difference"),
    [
        ("loss", "SCALE = 3.0", r"global SCALE = 2.0.*global SCALE = 3.0"),
        ("loss", "NAME = 'sum'", "global NAME = 'mean'.*global NAME = 'sum'"),
        ("loss", "table[2] = 4.0", "global table = tensor"),
        ("loss", "options['alpha'] = 0.2", "global options = .*0.1.*0.2"),
        (
            "loss",
            "options['parts'][1] = 3.0",
            "key 'parts', value 1.0, value 2.0.*value 1.0, value 3.0",
        ),
        ("loss", "namespace.inner.gamma = 1.0", "global namespace.inner.gamma = 0.4.*= 1.0"),
        ("loss", "kind = 3", "global kind = Kind.SUM.*global kind = 3"),
        ("loss", "PAIR = (3, 2)", "global PAIR = 1, value 2.*global PAIR = 3, value 2"),
        ("loss", "settings.power = 3.0", "global settings.power = 2.0.*= 3.0"),
        ("loss", "fixed.shift = 1.5", "global fixed.shift"),
        ("loss", "def power(x): return x.abs()", "function power"),
        ("weighted", "weighted.factor = 3.0", "factor = 2.0.*factor = 3.0"),
        ("logging", "SCALE = 3.0", "global SCALE = 2.0.*global SCALE = 3.0"),
    ],
)
def test_what_a_function_reads_is_part_of_a_run(
    tmp_path: Path, name: str, change: str, difference: str
) -> None:
    _start(tmp_path, _objective(name), 1)
    _start(tmp_path, _objective(name), 2)
    with pytest.raises(MismatchError, match=f"(?s)terms/own: .*{difference}"):
        _start(tmp_path, _objective(name, change), 3)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("loss", "CALLS = 3"),
        ("loss", "unread = 3"),
        ("loss", "namespace.beta = 3"),
        ("logging", "log.append(1)"),
        ("weighted", "weighted.calls = 3"),
    ],
)
def test_what_moves_or_is_not_read_is_not(tmp_path: Path, name: str, change: str) -> None:
    objective = _objective(name)
    _start(tmp_path, objective, 1)
    _start(tmp_path, objective, 2)  # in the process in which it has moved
    _start(tmp_path, _objective(name, change), 3)


torch.manual_seed(0)
_LARGE = Net(8)


class Scaled(nn.Module):
    """A student whose repr does not say how it computes."""

    def __init__(self, scale: float, forward: Any = None) -> None:
        super().__init__()
        self.inner, self.scale, self.calls = Net(6), scale, 0
        self._cache = [1]

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        return {"logits": self.scale * self.inner(x)["logits"]}


class Halved(Scaled):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": 0.5 * self.scale * self.inner(x)["logits"]}


Halved.__name__ = "Scaled"


def _of(module: nn.Module) -> fkd.Objective:
    terms = {"kd": term(kl, student.logits, teacher.logits)}
    return fkd.Objective(terms, student=fkd.trainable(module), teacher=fkd.frozen(_LARGE))


@pytest.mark.parametrize(
    ("there", "difference"),
    [(lambda: Scaled(3.0), "scale=2.0.*scale=3.0"), (lambda: Halved(2.0), "function Halved")],
)
def test_how_a_module_computes_is_part_of_a_run(
    tmp_path: Path, there: Any, difference: str
) -> None:
    def start(module: nn.Module, steps: int) -> None:
        torch.manual_seed(0)
        _start(tmp_path, _of(module), steps)

    start(Scaled(2.0), 1)
    start(Scaled(2.0), 2)
    with pytest.raises(MismatchError, match=f"(?s)models/student/modules/.*{difference}"):
        start(there(), 3)


def _bert(**settings: Any) -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, intermediate_size=8, **sizes, **settings)
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"hidden_act": "relu"}, "student/config/hidden_act: \"'gelu'\".*\"'relu'\""),
        ({"attention_probs_dropout_prob": 0.3}, "attention_probs_dropout_prob: .*0.1.*0.3"),
    ],
)
def test_the_config_of_a_model_is_part_of_a_run(
    tmp_path: Path, settings: dict[str, Any], difference: str
) -> None:
    def start(steps: int, **settings: Any) -> None:
        objective = fkd.Objective(
            {"kd": term(kl, student.logits, teacher.logits)},
            student=fkd.trainable(_bert(**settings)),
            teacher=fkd.frozen(_bert()),
        )
        step = fkd.loops.train_step(objective, adamw, compile=False)
        data = [{"input_ids": torch.arange(8).view(2, 4)}]
        fkd.loops.run(step, step.init(), data, steps=steps, checkpoint_dir=tmp_path, progress=False)

    start(1)
    start(2)
    with pytest.raises(MismatchError, match=difference):
        start(3, **settings)


def _rows(seed: int, batch_size: int) -> Any:
    return torch.utils.data.DataLoader([{"x": torch.ones(5)}] * 6, batch_size=batch_size)


@pytest.mark.parametrize(
    "loader",
    [
        _rows(0, 3),
        Mapped(lambda batch: batch, _rows(0, 3)),
        functools.partial(_rows, batch_size=3),
        [{"x": torch.ones(3, 5)}],
    ],
)
def test_the_batch_size_is_known_before_a_batch_is_drawn(loader: Any) -> None:
    step = fkd.loops.train_step(_of(Net(6)), adamw, compile=False)
    assert settings(step, step.init(), loader)["batch size"] == 3


def test_steps_in_two_threads_have_the_bits_of_one() -> None:
    def trained(module: nn.Module, seed: int) -> torch.Tensor:
        step = fkd.loops.train_step(_of(module), adamw, compile=False)
        state = step.init(seed)
        for batch in 4 * data:
            state, _ = step(state, batch)
        return torch.cat([x.flatten() for x in state.trainable["student"].values()])

    torch.manual_seed(0)
    data, modules = batches(), {1: Net(6), 2: Net(6)}
    students = {seed: [Net(6) for _ in range(2)] for seed in modules}
    for seed, copies in students.items():
        for copied in copies:
            copied.load_state_dict(modules[seed].state_dict())
    alone = {seed: trained(copies[0], seed) for seed, copies in students.items()}
    beside: dict[int, torch.Tensor] = {}

    def run(seed: int) -> None:
        beside[seed] = trained(students[seed][1], seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in students]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[seed], beside[seed]) for seed in students)
