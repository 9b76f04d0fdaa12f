"""A small distillation with everything that a run has to keep, and processes to kill it in."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fkd
from fkd import batch, ref, student, teacher, term
from fkd.loops import Event, State, TrainStep, fit, train_step
from fkd.loops._checkpoint.checkpoint import load
from fkd.losses import cross_entropy, kl, mse

FEATURES, CLASSES, EXAMPLES, SIZE = 5, 3, 24, 5
fork = multiprocessing.get_context("fork")


class Net(nn.Module):
    """Dropout, batch statistics, logits and one hidden layer."""

    def __init__(self, width: int = 6, dropout: float = 0.3) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.drop(torch.tanh(self.norm(self.first(x))))
        return {"hidden": hidden, "logits": self.head(hidden)}


def centred(x: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """A loss with a state: the distance from a running mean."""
    return (x - state).square().mean(-1), 0.9 * state + 0.1 * x.mean(0)


def objective(weight: Any = 0.5) -> fkd.Objective:
    torch.manual_seed(0)
    slow = ref("slow")
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0, weight=weight),
            "labels": term(cross_entropy, student.logits, batch["y"]),
            "hidden": term(mse, fkd.module("project")(student.hidden), teacher.hidden),
            "slow": term(mse, student.logits, slow.logits),
            "centred": term(centred, student.hidden, weight=0.1, state=torch.zeros(6)),
        },
        student=fkd.trainable(Net(6)),
        teacher=fkd.frozen(Net(8)),
        project=fkd.trainable(nn.Linear(6, 8)),
        slow=fkd.ema("student", decay=0.9),
    )


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=0.01)


def make(**options: Any) -> tuple[TrainStep, State]:
    moving = fkd.schedules.linear(1.0, 0.1, steps=10)
    chosen = {"compile": False, "clip": 1.0, "lr": moving, **options}
    step = train_step(objective(weight=moving), adamw, **chosen)
    return step, step.init(seed=3)


def batches(count: int = 5, *, bad: int | None = None) -> list[dict[str, Tensor]]:
    """Batches with a ragged last one; `bad` holds a nan."""
    g = torch.Generator().manual_seed(1)
    sizes = [SIZE] * (count - 1) + [SIZE - 1]
    made = [
        {
            "x": torch.randn(n, FEATURES, generator=g),
            "y": torch.randint(0, CLASSES, (n,), generator=g),
        }
        for n in sizes
    ]
    if bad is not None:
        made[bad]["x"][0, 0] = float("nan")
    return made


class Noisy(Dataset[Any]):
    """Examples with noise from all three global generators."""

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = random.random() + float(np.random.rand())
        x = torch.randn(FEATURES) + index / EXAMPLES + noise
        return {"x": x, "y": torch.tensor(index % CLASSES)}


def _generator(seed: int) -> Iterator[Any]:
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)).tolist()
    yield from (batches()[i] for i in order)


def _loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=SIZE, shuffle=True, **options)


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: batches(bad=2),
    "function": lambda: _generator,
    "shuffled": _loader,
    "own generator": lambda: _loader(generator=torch.Generator().manual_seed(5)),
    "workers": lambda: _loader(num_workers=2),
}


def train(
    folder: Path | None, loader: Any = None, *, options: dict[str, Any] | None = None, **more: Any
) -> list[Event]:
    """The events of a run of two epochs of five batches, saved every three steps."""
    step, state = make(**(options or {}))
    chosen: dict[str, Any] = {
        "epochs": 2,
        "log_every": 4,
        "checkpoint_dir": folder,
        "tensorboard": False,
        "progress": False,
        **({} if folder is None else {"save_every": 3}),
        **more,
    }
    return list(fit(step, state, batches() if loader is None else loader, **chosen))


def kill_at(step: int) -> Callable[[Event], None]:
    """A callback that kills its own process, with no chance to clean up."""

    def callback(event: Event) -> None:
        if event.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return callback


def killed_batches(loader: Any, after: int) -> Callable[[int], Iterator[Any]]:
    """A loader that kills the process when it is asked for a batch, after so many in all."""
    given = 0

    def epoch(seed: int) -> Iterator[Any]:
        nonlocal given
        del seed
        for made in loader:
            if given == after:
                os.kill(os.getpid(), signal.SIGKILL)
            given += 1
            yield made

    return epoch


def in_process(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int | None:
    """Run in a forked process; its exit code (negative: the signal that ended it)."""
    process = spawn(function, *args, **kwargs)
    process.join(60)
    return process.exitcode


def spawn(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    def run() -> None:
        torch.set_num_threads(1)  # the threads of the parent do not exist here
        function(*args, **kwargs)

    process = fork.Process(target=run)
    process.start()
    return process


def newest(folder: Path) -> Path:
    return max(p for p in folder.iterdir() if p.name.startswith("step-"))


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bytes, and the same place in the data."""
    a, b = newest(one), newest(other)
    if a.name != b.name:
        return False
    files = [(p / "state.safetensors").read_bytes() for p in (a, b)]
    trees = [load(p).tree for p in (a, b)]
    rest = [(t["position"], t["state"]["step"], t["state"]["seed"]) for t in trees]
    return files[0] == files[1] and rest[0] == rest[1]
