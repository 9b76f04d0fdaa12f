"""Caches: the values, the bits and the bytes; what is refused."""

from __future__ import annotations

import collections
import dataclasses
import json
import multiprocessing
import os
import pickle
import random
import signal
import time
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fkd
from fkd import batch, call, frozen, student, teacher, term, trainable
from fkd.loops import BucketBatchSampler, pad_batch, run, train_step
from fkd.loops._checkpoint.tensors import NAMES
from fkd.losses import attention_kl, cross_entropy, kl, mse
from fkd.sources import DamagedSourceError, MissError, SourceError, bind, cache, exact
from fkd.sources import open as open_cache
from tests.interop.tiny import tiny
from tests.models import CLASSES, CNN, FEATURES, MLP

from .test_bind import assert_same, value_and_gradient


def goal(seed=0, **terms):
    torch.manual_seed(seed)
    return fkd.Objective(
        terms
        or {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
            "hidden": term(mse, student.hidden_states[1], teacher.hidden_states[1]),
        },
        student=trainable(MLP(8)),
        teacher=frozen(MLP(8)),
    )


def rows(count=20, length=3):
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(count, length, FEATURES, generator=draw)
    y = torch.randint(CLASSES, (count, length), generator=draw)
    return [{"x": x[i], "y": y[i], "index": i} for i in range(count)]


def loader(made, size=4, **options):
    return DataLoader(made, batch_size=size, **options)


def collated(made, indices):
    return torch.utils.data.default_collate([made[i] for i in indices])


def assert_close(objective, cheap, one, kept):
    """Batches of other samples than those of the cache, in which the teacher rounds otherwise."""
    [attached] = kept.attach([one])
    a, b = value_and_gradient(objective, one), value_and_gradient(cheap, attached)
    torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-6)
    for x, y in zip(a[1], b[1], strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_cached_is_live_to_the_bit_and_close_in_any_order(tmp_path):
    objective, made = goal(), rows()
    kept = cache(objective, loader(made), tmp_path, key="index", progress=False)
    assert len(kept) == 20 and kept.codes == ["teacher.logits", "teacher.hidden_states[1]"]
    cheap = bind(objective, kept, compare=collated(made, [3, 1, 17, 8]))
    assert list(cheap.models) == ["student"] and cheap.program.runs == ("student",)
    for first in range(0, 20, 4):  # the batches of the cache
        one = collated(made, range(first, first + 4))
        [attached] = kept.attach([one])
        assert_same(objective, cheap, one, attached)
    whole = kept.values(collated(made, range(20)))
    for indices in ([3, 1, 17, 8], [19, 0, 5], [7, 7, 7, 7]):
        one = collated(made, indices)
        some = kept.values(one)
        assert all(torch.equal(some[k], whole[k][indices]) for k in whole)
        assert_close(objective, cheap, one, kept)


@pytest.mark.parametrize(
    ("accumulate", "workers", "shuffle"), [(1, 0, False), (1, 2, False), (1, 2, True), (2, 0, True)]
)
def test_training_from_a_cache_is_training_with_the_teacher(tmp_path, accumulate, workers, shuffle):
    objective, made = goal(), rows()
    cache(objective, loader(made), tmp_path, progress=False)
    kept = open_cache(tmp_path)
    plain = loader(made, shuffle=shuffle, num_workers=workers)
    collate = kept.attach_collate(torch.utils.data.default_collate)
    cached = (
        loader(made, shuffle=shuffle, num_workers=workers, collate_fn=collate)
        if workers
        else kept.attach(plain)
    )
    ends = []
    for one, data in ((objective, plain), (bind(objective, kept), cached)):
        step = train_step(
            one, lambda p: torch.optim.SGD(p, lr=0.1), compile=False, accumulate=accumulate
        )
        ends.append(run(step, step.init(3), data, epochs=2, progress=False).state)
    for name, p in ends[0].trainable["student"].items():
        q = ends[1].trainable["student"][name]
        assert shuffle or torch.equal(p, q)
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_run_from_a_cache_is_resumed_to_the_bit(tmp_path):
    objective, made = goal(), rows()
    kept = cache(objective, loader(made), tmp_path / "cache", progress=False)
    data = kept.attach(loader(made, shuffle=True))
    cheap = bind(objective, kept)

    def train(folder, steps):
        step = train_step(cheap, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
        return run(step, step.init(), data, steps=steps, checkpoint_dir=folder, progress=False)

    train(tmp_path / "a", 4)
    parts, whole = train(tmp_path / "a", 9).state, train(tmp_path / "b", 9).state
    for name, p in whole.trainable["student"].items():
        assert torch.equal(p, parts.trainable["student"][name])
    other = cache(goal(seed=9), loader(made), tmp_path / "other", progress=False)
    step = train_step(
        bind(goal(seed=9), other), lambda p: torch.optim.SGD(p, lr=0.1), compile=False
    )
    with pytest.raises(fkd.loops.CheckpointError, match="sourced"):
        run(step, step.init(), other.attach(loader(made)), steps=12, checkpoint_dir=tmp_path / "a",
            progress=False)  # fmt: skip


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
def test_a_compiled_step_takes_the_values(tmp_path):
    objective, made = goal(), rows()
    kept = cache(objective, loader(made), tmp_path, compile=True, progress=False)
    losses = []
    for one, data in (
        (objective, loader(made)),
        (bind(objective, kept), kept.attach(loader(made))),
    ):
        step = train_step(one, lambda p: torch.optim.SGD(p, lr=0.1))
        state = step.init()
        for part in data:
            state, metrics = step(state, part)
            losses.append(float(metrics["loss/total"]))
        assert step.compilations == 1
    assert losses[:5] == pytest.approx(losses[5:], rel=1e-5)


# Ragged


def bert():
    torch.manual_seed(0)
    where = batch.attention_mask
    return fkd.Objective(
        {
            "attention": term(
                attention_kl, student.attention(1), teacher.attention(2), where=where
            ),
            "hidden": term(mse, student.hidden_states[1], teacher.hidden_states[3], where=where),
            "kd": term(kl, student.logits, teacher.logits),
        },
        student=trainable(tiny("bert"), training=False, unused=["bert.pooler"]),
        teacher=frozen(tiny("bert")),
    )


def texts(count=12):
    draw = random.Random(3)
    return [
        {"input_ids": [draw.randrange(1, 30) for _ in range(draw.randrange(2, 9))], "labels": 1}
        for _ in range(count)
    ]


def test_texts_of_several_lengths_in_buckets_and_random_order(tmp_path):
    objective, made = bert(), texts()
    edges = [4, 6, 10]
    collate = lambda part: pad_batch(part, edges=edges)
    kept = cache(objective, [collate(made[i : i + 3]) for i in range(0, 12, 3)], tmp_path,
                 progress=False)  # fmt: skip
    assert [form["shape"] for form in kept.header.forms] == [[2, -1, -1], [-1, 16], [2]]
    cheap = bind(objective, kept)
    sampler = BucketBatchSampler([len(t["input_ids"]) for t in made], 3, edges=edges)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for indices in sampler:
            one = collate([made[i] for i in indices])
            [attached] = kept.attach([one])
            a, b = (g(g.init(), x) for g, x in ((objective, one), (cheap, attached)))
            torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-6)
    one = collate(made[:3])  # the batches of the cache, to the bit
    [attached] = kept.attach([one])
    assert_same(objective, cheap, one, attached)


def test_padding_on_the_left(tmp_path):
    torch.manual_seed(0)
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits, where=batch.attention_mask)},
        student=trainable(tiny("llama")),
        teacher=frozen(tiny("llama")),
    )
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    ids = torch.randint(1, 30, (2, 5))
    made = {"input_ids": ids, "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}  # fmt: skip
    kept = cache(objective, [made], tmp_path, progress=False)
    [attached] = kept.attach([made])
    assert_same(objective, bind(objective, kept), made, attached)


def test_a_term_that_reads_padding_is_refused(tmp_path):
    torch.manual_seed(0)
    objective = fkd.Objective(
        {"hidden": term(mse, student.hidden_states[1], teacher.hidden_states[1])},
        student=trainable(tiny("bert"), training=False, unused=["bert.pooler", "classifier"]),
        teacher=frozen(tiny("bert")),
    )
    made = [pad_batch(texts(), edges=[10])]
    with pytest.raises(SourceError, match=r"term 'hidden' reads .* padding.*where=batch"):
        cache(objective, made, tmp_path / "a", progress=False)
    kept = cache(objective, made, tmp_path / "b", mask=None, progress=False)
    [attached] = kept.attach(made)
    assert_same(objective, bind(objective, kept), made[0], attached)


# What is by sample


def gram(x):
    x = x.flatten(1)
    return x @ x.T


def centred(x):
    return x - x.mean(0)


@pytest.mark.parametrize("relation", [gram, centred])
def test_what_relates_samples_is_computed_in_the_step(tmp_path, relation):
    objective = goal(
        relation=term(
            mse,
            call(relation, student.hidden_states[1]),
            call(relation, teacher.hidden_states[1]),
        )
    )
    made = rows()
    kept = cache(objective, loader(made), tmp_path, progress=False)
    assert kept.codes == ["teacher.hidden_states[1]"]
    assert_close(objective, bind(objective, kept), collated(made, [3, 12, 5, 9]), kept)


def test_what_is_asked_for_and_is_not_by_sample_is_refused(tmp_path):
    related = call(gram, teacher.logits)
    objective = goal(a=term(mse, call(gram, student.logits), related))
    with pytest.raises(SourceError, match=r"on the other samples|a row for each"):
        cache(objective, loader(rows()), tmp_path, keep={related: exact()}, progress=False)


def test_packed_positions_are_taken_in_the_step(tmp_path):
    from fkd.loops import pack, take

    def taken(x):
        return call(take, x, batch.packed)

    objective = goal(
        a=term(kl, taken(student.logits), taken(teacher.logits), where=batch.packed.kept)
    )
    made = {"x": torch.randn(4, 3, FEATURES)}
    made["packed"] = pack(torch.rand(4, 3) > 0.4, multiple=4)
    kept = cache(objective, [made], tmp_path, progress=False)
    assert kept.codes == ["teacher.logits"]
    [attached] = kept.attach([made])
    assert_same(objective, bind(objective, kept), made, attached)


def test_a_cnn_with_taps_and_images_by_a_function(tmp_path):
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "tap": term(mse, student.tap("first"), teacher.tap("first")),
            "kd": term(kl, student.logits, teacher.logits),
        },
        student=trainable(CNN(4), inputs=lambda b: b["image"] / 2),
        teacher=frozen(CNN(4), inputs=lambda b: b["image"] / 2),
    )
    made = {"image": torch.randn(4, 3, 8, 8), "label": torch.tensor([1, 2, 3, 4])}
    kept = cache(objective, [made], tmp_path, progress=False)
    assert kept.header.reading.fields == ("image",)
    flipped = {k: v.flip(0) for k, v in made.items()}
    [attached] = kept.attach([flipped])
    assert_same(objective, bind(objective, kept), flipped, attached)


# How it is kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_other_dtypes_round_and_are_given_back_as_the_teacher_gives_them(tmp_path, dtype):
    objective, made = goal(a=term(kl, student.logits, teacher.logits)), rows()
    kept = cache(objective, loader(made), tmp_path, keep={teacher.logits: exact(dtype)},
                 progress=False)  # fmt: skip
    one = collated(made, [4, 5, 6, 7])
    values = kept.values(one)["v0"]
    live = fkd.sources.live(objective).values(one)["v0"]
    assert values.dtype == torch.float32
    assert torch.equal(values, live.to(dtype).float())
    bind(objective, kept, compare=one)


def test_a_part_may_stand_for_what_is_computed_from_it(tmp_path):
    soft = call(torch.softmax, teacher.logits, dim=-1)
    objective, made = goal(a=term(mse, torch.softmax(student.logits, -1), soft)), rows()
    kept = cache(objective, loader(made), tmp_path, keep={teacher.logits: exact()}, progress=False)
    assert kept.codes == ["teacher.logits"]
    one = collated(made, [4, 5, 6, 7])
    [attached] = kept.attach([one])
    assert_same(objective, bind(objective, kept), one, attached)


def test_what_does_not_fit_its_dtype_is_refused(tmp_path):
    ids = teacher.logits.argmax(-1)
    objective = goal(a=term(cross_entropy, student.logits, ids))
    kept = cache(objective, loader(rows()), tmp_path / "a", keep={ids: exact(torch.uint8)},
                 progress=False)  # fmt: skip
    assert kept.values(collated(rows(), [0, 1]))["v0"].dtype == torch.int64
    large = call(torch.mul, teacher.logits, 1e6)
    objective = goal(a=term(mse, student.logits, large))
    with pytest.raises(SourceError, match=r"torch\.float16 cannot hold"):
        cache(objective, loader(rows()), tmp_path / "b", keep={large: exact(torch.float16)},
              progress=False)  # fmt: skip


def named_parts(x):
    return {"wide": torch.cat([x, x], -1), "by sample": (x.mean(dim=(1, 2)), [x])}


def test_values_that_are_trees(tmp_path):
    parts = call(named_parts, teacher.hidden_states[1])
    objective = goal(
        a=term(mse, student.hidden_states[1], parts["by sample"][1][0]),
        b=term(mse, call(named_parts, student.hidden_states[1]).wide, parts["wide"]),
        c=term(tree_loss, student.hidden_states[1], parts),
    )
    kept = cache(objective, loader(rows()), tmp_path, progress=False)
    assert kept.codes == ["call(named_parts, teacher.hidden_states[1])"]
    one = collated(rows(), range(4))
    [attached] = kept.attach([one])
    assert_same(objective, bind(objective, kept, compare=one), one, attached)


def tree_loss(x, parts):
    return (x - parts["by sample"][1][0]).square() + parts["wide"].mean()


def test_a_loader_of_unknown_length_and_a_function_of_a_seed(tmp_path):
    class Endless:
        def __iter__(self):
            return iter(loader(rows()))

    kept = cache(goal(), loader(rows()), tmp_path, progress=False)
    step = train_step(bind(goal(), kept), lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
    for data in (Endless(), lambda seed: loader(rows())):
        run(step, step.init(), kept.attach(data), steps=7, progress=True)
    assert not hasattr(kept.attach(Endless()), "__len__")
    assert len(kept.attach(loader(rows()))) == 5


@pytest.mark.plain
def test_wrong_arguments_are_refused(tmp_path):
    objective = goal()
    with pytest.raises(SourceError, match=r"exact\(dtype\), scaled"):
        cache(objective, [], tmp_path, keep={teacher.logits: torch.float16})
    with pytest.raises(SourceError, match=r"student\.logits, which is not a value of a frozen"):
        cache(objective, [], tmp_path, keep={student.logits: exact()})
    with pytest.raises(SourceError, match="the loader gave no batch"):
        cache(objective, [], tmp_path, progress=False)
    with pytest.raises(SourceError, match="no field 'id'"):
        cache(objective, loader(rows()), tmp_path, key="id", progress=False)
    with pytest.raises(SourceError, match=r"has no header\.json"):
        open_cache(tmp_path / "nothing")


def test_an_objective_without_a_student_can_be_cached(tmp_path):
    objective = goal()
    lone = fkd.Objective(dict(objective.terms), teacher=objective.models["teacher"])
    kept = cache(lone, loader(rows()), tmp_path, progress=False)
    one = collated(rows(), [4, 5])
    [attached] = kept.attach([one])
    assert_same(objective, bind(objective, kept), one, attached)


# What is refused when it is read


def test_a_miss_names_the_sample(tmp_path):
    objective, made = goal(), rows()
    kept = cache(objective, loader(made[:8]), tmp_path / "id", key="index", progress=False)
    with pytest.raises(MissError, match=r"sample 9 is not in the cache"):
        kept.values(collated(made, [1, 9]))
    changed = collated(made, [1, 2])
    changed["x"][1, 0, 0] += 1e-6
    with pytest.raises(MissError, match=r"sample 2 has other inputs \(x\)"):
        kept.values(changed)
    kept = cache(objective, loader(made[:8]), tmp_path / "hash", progress=False)
    with pytest.raises(MissError, match=r"row 1 of the batch is not in the cache.*augmentation"):
        kept.values(changed)


def test_text_names_and_repeated_samples(tmp_path):
    made = [{**row, "name": f"text-{row['index'] % 7}"} for row in rows(14)]
    for row in made:
        row["x"] = rows()[row["index"] % 7]["x"]
    kept = cache(goal(), loader(made), tmp_path, key="name", progress=False)
    assert len(kept) == 7
    with pytest.raises(MissError, match="sample 'text-8'"):
        kept.values({**collated(made, [1]), "name": ["text-8"]})


def test_one_name_for_two_samples_is_refused(tmp_path):
    twice = rows()
    twice[7]["index"] = 3
    for size in (4, 20):  # in another batch, and in the same one
        with pytest.raises(SourceError, match=r"sample 3 comes twice.* inputs \(x\)"):
            cache(goal(), loader(twice, size), tmp_path / f"{size}", key="index", progress=False)
    cache(goal(), loader(rows(8)), tmp_path / "c", key="index", progress=False)
    with pytest.raises(SourceError, match="sample 3 comes twice, or is kept already"):
        cache(goal(), loader(twice), tmp_path / "c", key="index", progress=False)


def test_empty_batches_are_left_out(tmp_path):
    made = [collated(rows(), range(a, b)) for a, b in ((0, 4), (4, 8))]
    empty = {name: x[:0] for name, x in made[0].items()}
    kept = cache(goal(), [empty, made[0], empty, made[1]], tmp_path, progress=False)
    assert len(kept) == 8 and kept.values(empty)["v0"].shape == (0, 3, CLASSES)


@dataclasses.dataclass
class Fields:
    x: torch.Tensor
    index: torch.Tensor


Named = collections.namedtuple("Named", ["x", "index"])


@pytest.mark.parametrize("kind", [Fields, Named])
def test_a_batch_that_is_a_record(tmp_path, kind):
    ones = [collated(rows(), range(i, i + 4)) for i in range(0, 20, 4)]
    records = [kind(one["x"], one["index"]) for one in ones]
    objective = goal()
    kept = cache(objective, records, tmp_path, key="index", progress=False)
    cheap = bind(objective, kept, compare=records[1])
    [attached] = kept.attach(records[2:3])
    assert_same(objective, cheap, ones[2], attached)


def test_another_teacher_is_refused_with_what_differs(tmp_path):
    objective, made = goal(), rows()
    kept = cache(objective, loader(made), tmp_path, progress=False)
    other = goal()
    with torch.no_grad():
        other.models["teacher"].module.head.bias[2] += 1e-6
    with pytest.raises(SourceError, match=r"teacher/tensors/head\.bias: .* in the cache, .* here"):
        bind(other, kept)
    with pytest.raises(SourceError, match=r"teacher/tensors/head\.bias"):
        cache(other, loader(made), tmp_path, progress=False)
    assert len(open_cache(tmp_path)) == 20
    with pytest.raises(SourceError, match=r"precision: .*fp32.*bf16"):
        cache(objective, loader(made), tmp_path, precision="bf16", progress=False)


def twice(x):
    return x * 2


@pytest.mark.parametrize(
    "fn",
    [torch.Tensor.tanh, nn.Softmax(-1), nn.Sequential(nn.Flatten(2), nn.ReLU())],
    ids=str,
)
def test_methods_and_layers_of_torch_are_told_apart(tmp_path, fn):
    def of(fn):
        return goal(a=term(mse, call(fn, student.logits), call(fn, teacher.logits)))

    keep = {call(fn, teacher.logits): exact()}
    kept = cache(of(fn), loader(rows()), tmp_path, keep=keep, progress=False)
    assert list(bind(of(fn), kept).models) == ["student"]
    with pytest.raises(SourceError, match="no term reads"):
        bind(of(nn.Softmax(-2)), kept)


def test_a_function_of_the_same_name_is_not_the_same(tmp_path):
    first = goal(a=term(mse, student.logits, call(twice, teacher.logits)))
    kept = cache(first, loader(rows()), tmp_path, progress=False)

    def other(x):
        return x * 3

    other.__name__, other.__qualname__ = "twice", "twice"
    with pytest.raises(SourceError, match="no term reads"):
        bind(goal(a=term(mse, student.logits, call(other, teacher.logits))), kept)


# Faults


def built(folder, objective=None, size=1000):
    return cache(objective or goal(), loader(rows()), folder, key="index", shard_bytes=size,
                 about={"text": "rows"}, progress=False)  # fmt: skip


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def test_the_same_call_makes_the_same_bytes(tmp_path):
    built(tmp_path / "a")
    built(tmp_path / "b")
    assert len(content(tmp_path / "a")) > 3
    assert content(tmp_path / "a") == content(tmp_path / "b")
    built(tmp_path / "a")  # which is complete
    assert content(tmp_path / "a") == content(tmp_path / "b")
    from safetensors.torch import load_file

    assert "index/keys" in load_file(tmp_path / "a" / "00000.safetensors")


def _slowly(folder):
    made = goal()

    def batches(seed):
        del seed
        for part in loader(rows()):
            time.sleep(0.02)
            yield part

    cache(made, batches, folder, key="index", shard_bytes=1000, about={"text": "rows"},
          progress=False)  # fmt: skip


def test_killed_and_made_again_it_has_the_same_bytes(tmp_path):
    built(tmp_path / "whole")
    draw = random.Random(0)
    context = multiprocessing.get_context("fork")
    partly = 0
    for i in range(6):
        folder = tmp_path / f"killed{i}"
        process = context.Process(target=_slowly, args=(folder,))
        process.start()
        began = time.monotonic()
        while not (folder / "header.json").exists() and time.monotonic() - began < 20:
            time.sleep(0.001)
        time.sleep(draw.random() * 0.06)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        partly += not open_cache(folder).header.complete
        built(folder)
        assert content(folder) == content(tmp_path / "whole")
    assert partly


def test_an_interrupted_build_runs_only_what_is_missing(tmp_path):
    def half(seed):
        del seed
        yield from list(loader(rows()))[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache(goal(), half, tmp_path, key="index", shard_bytes=1000, progress=False)
    kept = open_cache(tmp_path)
    assert 0 < len(kept) < 20 and not kept.header.complete
    with pytest.raises(MissError, match="and is not complete"):
        kept.values(collated(rows(), [19]))


def test_a_flipped_byte_is_an_error_that_names_the_file(tmp_path):
    kept = built(tmp_path)
    objective, everything = goal(), collated(rows(), range(20))
    right = kept.values(everything)
    draw = random.Random(1)
    for path in sorted(tmp_path.iterdir()):
        if path.name == ".lock":
            continue
        raw = path.read_bytes()
        places = range(len(raw)) if path.name == "header.json" else range(0, len(raw), 7)
        for at in draw.sample(list(places), min(len(places), 150)):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(DamagedSourceError, match=path.name.replace(".", r"\.")):
                open_cache(tmp_path).values(everything)
        for cut in (0, 7, len(raw) // 2, len(raw) - 1):
            path.write_bytes(raw[:cut])
            with pytest.raises(DamagedSourceError, match=path.name.replace(".", r"\.")):
                open_cache(tmp_path).values(everything)
        path.write_bytes(raw)
    again = open_cache(tmp_path).values(everything)
    assert all(torch.equal(right[k], again[k]) for k in right)
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(DamagedSourceError, match=r"00001\.safetensors"):
        open_cache(tmp_path)
    with pytest.warns(UserWarning, match=r"00001\.safetensors is damaged or missing"):
        mended = built(tmp_path, objective)
    assert all(torch.equal(right[k], v) for k, v in mended.values(everything).items())
    mended.verify()


def test_a_shard_that_is_cut_while_it_is_used_is_an_error(tmp_path):
    kept = built(tmp_path)
    os.truncate(tmp_path / "00000.safetensors", 300)
    with pytest.raises(DamagedSourceError, match="cut short"):
        kept.values(collated(rows(), [0]))


def test_a_full_disk_leaves_what_is_there(tmp_path, monkeypatch):
    from fkd.sources import _store

    built(tmp_path / "whole")
    write, calls = _store.write_file, []

    def full(path, chunks):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(path, chunks)

    monkeypatch.setattr(_store, "write_file", full)
    with pytest.raises(OSError, match="No space left"):
        built(tmp_path / "full")
    assert len(open_cache(tmp_path / "full").header.shards) == 1
    monkeypatch.setattr(_store, "write_file", write)
    built(tmp_path / "full")
    assert content(tmp_path / "full") == content(tmp_path / "whole")


def test_a_cache_is_sent_to_another_process_by_its_folder(tmp_path):
    kept = built(tmp_path)
    sent = pickle.dumps(kept)
    assert len(sent) < 1000
    one = collated(rows(), [3, 2])
    assert torch.equal(pickle.loads(sent).values(one)["v0"], kept.values(one)["v0"])


def test_the_header_is_json_for_people(tmp_path):
    built(tmp_path)
    text = json.loads((tmp_path / "header.json").read_bytes())["header"]
    assert text["refs"][0]["code"] == "teacher.logits" and text["about"] == {"text": "rows"}
    assert set(NAMES.values()) >= {"F32"} and nn


def test_inputs_that_are_prepared_after_the_teacher_answered_are_told(tmp_path):
    kept = cache(goal(), loader(rows()), tmp_path, key="index", progress=False)

    def trained(prepare):
        step = train_step(bind(goal(), kept), torch.optim.SGD, compile=False)
        batches = kept.attach(loader(rows()))
        return run(step, step.init(), batches, epochs=1, prepare=prepare, progress=False)

    with pytest.warns(UserWarning, match=r"prepare changes 'x', .* source 'cache-") as told:
        trained(lambda state, one: {**one, "x": one["x"] + 1})
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(lambda state, one: {**one, "x": one["x"].clone(), "y": one["y"] * 0})
