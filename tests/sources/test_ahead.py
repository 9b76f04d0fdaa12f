"""Values ahead of the step: the order, the bits, the errors, the place of a run."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fkd
from fkd import frozen, student, teacher, term, trainable
from fkd.loops import prefetch, run, train_step
from fkd.losses import kl
from fkd.sources import SourceError, ahead, bind, cache, live
from tests.models import CLASSES, FEATURES, MLP

from .test_bind import assert_same, data, mlps
from .test_cache import bert, goal, loader, rows, texts


class Slow:
    """A source that takes its time, and remembers what it was asked for."""

    def __init__(self, objective, pause=0.0, fails_at=None):
        self.source, self.pause, self.fails_at = live(objective).beside(), pause, fails_at
        self.name, self.key, self.asked = self.source.name, self.source.key, []

    def values(self, batch):
        self.asked.append(int(batch["index"][0]))
        time.sleep(self.pause)
        if self.fails_at in self.asked:
            raise SourceError("the disk is gone")
        return self.source.values(batch)


def sgd(objective, **options):
    return train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1), **options)


def assert_same_state(one, other):
    for name, p in one.trainable["student"].items():
        assert torch.equal(p, other.trainable["student"][name]), name


@pytest.mark.parametrize("batches", [1, 3])
def test_ahead_is_live_to_the_bit(batches):
    for objective, made in ((mlps(), [data(), data(3), data(4, 2)]), (bert(), padded())):
        with ahead(objective, batches=batches) as source:
            cheap = bind(objective, source, compare=made[0])
            assert list(cheap.models) == ["student"]
            for one, attached in zip(made, source.attach(made), strict=True):
                assert_same(objective, cheap, one, attached)


def padded():
    from fkd.loops import pad_batch

    made = texts()
    return [pad_batch(made[i : i + 3], edges=[4, 6, 10]) for i in range(0, 12, 3)]


def test_it_is_ahead_of_the_step_and_not_further():
    source = Slow(mlps())
    with ahead(source, batches=2) as made:
        steps = []
        for b in made.attach(loader(rows(), 1)):
            time.sleep(0.01)
            steps.append((int(b["index"][0]), len(source.asked)))
    assert [i for i, _ in steps] == list(range(20)) == source.asked
    assert all(asked <= i + 3 for i, asked in steps)
    assert any(asked > i + 1 for i, asked in steps)


def test_the_next_values_are_made_while_a_step_runs():
    # Each step waits until the values of the next batch are asked for: without a thread
    # beside the step this never happens. No clock is read, so that a busy machine cannot fail it.
    reached = [threading.Event() for _ in range(20)]

    class Telling(Slow):
        def values(self, batch):
            reached[int(batch["index"][0])].set()
            return super().values(batch)

    with ahead(Telling(mlps())) as made:
        for i, _ in enumerate(made.attach(loader(rows(), 1))):
            assert reached[min(i + 1, 19)].wait(60), i


def test_an_error_in_the_thread_stands_where_its_batch_would(tmp_path):
    source = Slow(goal(), fails_at=8)
    cheap = bind(goal(), source)
    made = loader(rows(), 2)
    with ahead(source, batches=3) as before:
        seen = []
        with pytest.raises(SourceError, match="the disk is gone"):
            for b in before.attach(made):
                seen.append(int(b["index"][0]))
        assert seen == [0, 2, 4, 6]
        source.asked.clear()
        step = sgd(cheap, compile=False)
        options = {"epochs": 2, "checkpoint_dir": tmp_path, "progress": False}
        with pytest.raises(fkd.loops.LoopError, match=r"batch 4 of epoch 0.*the disk is gone"):
            run(step, step.init(), before.attach(made), **options)
        source.fails_at = None
        again = run(step, step.init(), before.attach(made), **options)
    whole = sgd(goal(), compile=False)
    assert_same_state(again.state, run(whole, whole.init(), made, epochs=2, progress=False).state)


def test_a_loader_that_fails_later_gives_its_batches_first():
    def batches(seed):
        del seed
        yield from [data(), data()]
        raise OSError("no such image")

    source = ahead(mlps(), batches=3)
    given = iter(source.attach(batches)(0))
    assert len([next(given), next(given)]) == 2
    with pytest.raises(OSError, match="no such image"):
        next(given)


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_training_ahead_is_training_with_the_teacher(accumulate, workers):
    objective, made = goal(), loader(rows(), shuffle=True, num_workers=workers)
    with ahead(objective, batches=2) as source:
        ends = []
        dev = loader(rows()[:6], 3)
        for one, train, test in (
            (objective, made, dev),
            (bind(objective, source), source.attach(made), source.attach(dev)),
        ):
            step = sgd(one, compile=False, accumulate=accumulate)
            ends.append(run(step, step.init(3), train, epochs=2, dev=test, best="loss/total",
                            progress=False))  # fmt: skip
    assert_same_state(ends[0].state, ends[1].state)
    assert ends[0].evaluations == ends[1].evaluations


class Stateful:
    """A loader that is put at its place by its own state."""

    def __init__(self, count=10):
        self.at, self.count, self.draws = 0, count, 0

    def __iter__(self):
        while self.at < self.count:
            self.at += 1
            self.draws += 1
            made = rows()
            yield torch.utils.data.default_collate([made[(2 * self.at) % 20]])
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@pytest.mark.parametrize("kind", [lambda: loader(rows(), 2, shuffle=True), Stateful])
def test_a_run_that_is_resumed_has_the_same_bits(tmp_path, kind):
    objective = goal()

    def train(folder, steps):
        with ahead(objective, batches=3) as source:
            step = sgd(bind(objective, source), compile=False)
            made = source.attach(kind())
            return run(step, step.init(), made, steps=steps, checkpoint_dir=folder, progress=False)

    for steps in (4, 9):
        parts = train(tmp_path / "a", steps).state
    whole = train(tmp_path / "b", 13).state
    assert_same_state(train(tmp_path / "a", 13).state, whole)
    assert parts.step == 9
    step = sgd(objective, compile=False)
    assert_same_state(run(step, step.init(), kind(), steps=13, progress=False).state, whole)


def test_killed_runs_go_on(tmp_path):
    import multiprocessing

    objective, made = goal(), loader(rows(), 2, shuffle=True)

    def train(folder, pause):
        with ahead(Slow(objective, pause), batches=2) as source:
            step = sgd(bind(objective, source), compile=False)
            return run(step, step.init(), source.attach(made), epochs=2, save_every=1,
                       checkpoint_dir=folder, progress=False)  # fmt: skip

    whole = train(tmp_path / "whole", 0.0).state
    process = multiprocessing.get_context("fork").Process(target=train, args=(tmp_path / "a", 0.02))
    process.start()
    began = time.monotonic()
    while len(list((tmp_path / "a").glob("*step*"))) < 2 and time.monotonic() - began < 30:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert_same_state(train(tmp_path / "a", 0.0).state, whole)


def test_dropout_of_the_student_is_not_touched_by_the_thread():
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=trainable(small, inputs=lambda b: b["x"], outputs=lambda y: {"logits": y}),
        teacher=frozen(MLP(8)),
    )
    made = [{"x": torch.randn(2, 3, FEATURES)} for _ in range(6)]
    ends = []
    with ahead(objective, batches=2) as source:
        for one, train in ((objective, made), (bind(objective, source), source.attach(made))):
            step = sgd(one, compile=False)
            ends.append(run(step, step.init(), train, epochs=3, progress=False).state)
    assert_same_state(*ends)


class Noisy(nn.Module):
    def forward(self, x):
        return {"logits": x[..., :CLASSES] + torch.rand(())}


def test_a_teacher_that_draws_is_refused():
    objective = mlps()
    noisy = fkd.Objective(dict(objective.terms), teacher=frozen(Noisy()))
    with ahead(noisy) as source, pytest.raises(SourceError, match="draws random numbers"):
        list(source.attach([data()]))
    assert live(noisy).values(data())  # which seeds them


def test_a_cache_ahead_and_prefetch(tmp_path):
    objective, made = goal(), rows()
    kept = cache(objective, loader(made), tmp_path, progress=False)
    with ahead(kept, batches=2) as source:
        cheap = bind(objective, source)
        pairs = zip(loader(made), prefetch(source.attach(loader(made)), "cpu"), strict=True)
        for one, attached in pairs:
            assert_same(objective, cheap, one, attached)
        assert len(source.attach(loader(made))) == 5
    worker = pickle.loads(pickle.dumps(source))
    assert worker.codes == kept.codes and worker.batches == 2
    by = DataLoader(made, 4, collate_fn=kept.attach_collate(torch.utils.data.default_collate))
    assert len(list(by)) == 5


def test_the_thread_ends_when_nobody_holds_it():
    source = ahead(mlps())
    list(source.attach([data(), data()]))
    assert any("fkd ahead" in t.name for t in threading.enumerate())
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None
    assert not any("fkd ahead" in t.name and t.is_alive() for t in threading.enumerate())
    closed = ahead(mlps())
    list(closed.attach([data(), data()]))
    closed.close()
    with pytest.raises(RuntimeError, match="is closed"):
        closed.start(data())


@pytest.mark.plain
def test_wrong_arguments_are_refused():
    with pytest.raises(SourceError, match="batches is 0"):
        ahead(mlps(), batches=0)
    with pytest.raises(SourceError, match="is a source"):
        ahead(live(mlps()), device="cpu")


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
def test_teacher_and_step_are_compiled_beside_each_other():
    objective, made = goal(), loader(rows())
    losses = []
    with ahead(objective, batches=2, compile=True) as source:
        for one, train in ((objective, made), (bind(objective, source), source.attach(made))):
            step, seen = sgd(one), []
            state = step.init()
            for b in train:
                state, metrics = step(state, b)
                seen.append(float(metrics["loss/total"]))
            losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_check_and_draw_say_that_it_is_ahead():
    source = ahead(mlps(), batches=2)
    cheap = bind(mlps(), source)
    [attached] = source.attach([data()])
    assert f"where {source.name} writes it (2 ahead of the step)" in str(fkd.check(cheap, attached))
    assert "2 ahead of the step" in fkd.draw(cheap).mermaid
