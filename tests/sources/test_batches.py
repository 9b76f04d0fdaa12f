"""Batches that are no dicts: lists of a `TensorDataset`, tuples, records and single tensors, from
every source."""

from __future__ import annotations

import collections
import dataclasses
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import fkd
from fkd import batch, frozen, ref, student, teacher, term, trainable
from fkd.loops import run
from fkd.loops._data.batch import normalised
from fkd.losses import cross_entropy, kl, mse
from fkd.sources import MissError, ahead, bind, cache, live, routed, sampled, serve, served, vllm
from fkd.sources import open as open_cache

from .language_server import LanguageServer
from .test_ahead import sgd
from .test_bind import assert_same

WIDTH, CLASSES = 5, 3


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner, self.head = nn.Linear(WIDTH, width), nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.inner(x).tanh())


def image_of(batch):
    return batch.x


def goal(inputs=None, label=batch[1], seed=0, **more):
    torch.manual_seed(seed)
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
            "ce": term(cross_entropy, student.logits, label),
            **more,
        },
        student=trainable(Net(4), inputs=inputs),
        teacher=frozen(Net(8), inputs=inputs),
    )


Named = collections.namedtuple("Named", ["x", "y", "index"])


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor
    index: torch.Tensor


def dataset(shift=0.0, route=False):
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, WIDTH, generator=draw), torch.randint(CLASSES, (12,), generator=draw)
    x[3] += shift
    return TensorDataset(x, y, torch.arange(12) % (2 if route else 12))


class Collate:
    """Rows as a batch of a kind."""

    def __init__(self, kind) -> None:
        self.kind = kind

    def __call__(self, rows):
        one = default_collate(rows)
        return self.kind(one) if self.kind in (list, tuple) else self.kind(*one)


def batches(kind, **options):
    return list(DataLoader(dataset(**options), 4, collate_fn=Collate(kind)))


def goal_of(kind, seed=0):
    """An objective for a kind of batch, and what the third and the first part are called."""
    if kind in (list, tuple):
        return goal(seed=seed), 2, 0
    inputs = image_of if kind is Named else None
    return goal(inputs, batch.y, seed), "index", "x"


KINDS = {"list": list, "tuple": tuple, "named tuple": Named, "dataclass": Record}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def assert_source(objective, source, made):
    cheap = bind(objective, source, compare=made[0])
    assert cheap.program.runs == ("student",)
    for one, attached in zip(made, source.attach(made), strict=True):
        assert_same(objective, cheap, normalised(one), attached)


@kinds
@pytest.mark.parametrize("named", [False, True])
def test_cached_batches_of_any_kind_are_live_to_the_bit(tmp_path, kind, named):
    made = batches(kind)
    objective, key, read = goal_of(kind)
    options = {"key": key if named else None, "progress": False}
    kept = cache(objective, made, tmp_path, **options)
    assert kept.header.reading.fields == (read,) and len(kept) == 12
    assert_source(objective, kept, made)
    assert_source(objective, open_cache(tmp_path), made)
    assert len(cache(objective, made, tmp_path, **options)) == 12
    with pytest.raises(MissError, match="sample 3 has other inputs" if named else "row 3"):
        kept.values(batches(kind, shift=1.0)[0])


@kinds
def test_live_ahead_and_served_batches_of_any_kind(kind):
    made, objective = batches(kind), goal_of(kind)[0]
    assert_source(objective, live(objective), made)
    with ahead(objective, batches=2) as source:
        assert_source(objective, source, made)
    with serve(objective) as server, served(server.url, batches=2) as source:
        assert_source(objective, source, made)
        assert_source(objective, source, made)  # of which only what is read is sent now


@kinds
def test_routed_batches_of_any_kind(tmp_path, kind):
    made = batches(kind, route=True)
    (objective, field, _), other = goal_of(kind), goal_of(kind, seed=1)[0]
    source = routed(field, {"one": objective, "two": cache(other, made, tmp_path, progress=False)})
    cheap = bind(objective, source)
    [attached] = source.attach(made[:1])
    assert cheap(cheap.init(), attached)[0].isfinite()
    [first], [second] = (live(one).values(made[0]).values() for one in (objective, other))
    [said] = source.values(made[0]).values()
    expected = torch.where((torch.arange(4) % 2)[:, None] == 0, first, second)
    torch.testing.assert_close(said, expected)


@kinds
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_from_a_cache_of_batches_of_any_kind(tmp_path, kind, accumulate):
    objective, key, _ = goal_of(kind)
    plain, shuffled = (
        DataLoader(dataset(), 4, shuffle=shuffle, collate_fn=Collate(kind))
        for shuffle in (False, True)
    )
    kept = cache(objective, plain, tmp_path, key=key, progress=False)
    ends = []
    for one, attach in ((objective, lambda x: x), (bind(objective, kept), kept.attach)):
        step = sgd(one, compile=False, accumulate=accumulate)
        ends.append(run(step, step.init(3), attach(shuffled), epochs=2, dev=attach(batches(kind)),
                        best="loss/total", progress=False))  # fmt: skip
    for name, p in ends[0].state.trainable["student"].items():
        torch.testing.assert_close(p, ends[1].state.trainable["student"][name])
    assert ends[0].evaluations[-1].keys() == ends[1].evaluations[-1].keys()


def test_workers_collate_lists_with_what_is_kept(tmp_path):
    objective = goal()
    kept = cache(objective, batches(list), tmp_path, progress=False)
    cheap = bind(objective, kept)
    loader = DataLoader(dataset(), 4, collate_fn=kept.attach_collate(default_collate),
                        num_workers=1)  # fmt: skip
    for one, attached in zip(batches(list), loader, strict=True):
        assert_same(objective, cheap, one, attached)


def test_two_sources_of_a_list(tmp_path):
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "second": term(mse, student.logits, ref("second").logits),
        },
        student=trainable(Net(4)), teacher=frozen(Net(8)), second=frozen(Net(6)),
    )  # fmt: skip
    one_by_one = [
        fkd.Objective({name: objective.terms[name]}, student=trainable(Net(4)),
                      **{model: objective.models[model]})
        for name, model in (("kd", "teacher"), ("second", "second"))
    ]  # fmt: skip
    made = batches(list)
    kept = [cache(one, made, tmp_path / str(i), progress=False)
            for i, one in enumerate(one_by_one)]  # fmt: skip
    cheap = bind(bind(objective, kept[0]), kept[1])
    [attached] = kept[1].attach(kept[0].attach(made[:1]))
    assert cheap.program.runs == ("student",) and len(attached.values) == 2
    assert_same(objective, cheap, made[0], attached)


@pytest.mark.compile
@pytest.mark.parametrize("kind", [list, Named])
def test_a_compiled_step_from_a_cache_of_batches_without_names(tmp_path, kind):
    objective, made = goal_of(kind)[0], batches(kind)
    kept = cache(objective, made, tmp_path, progress=False)
    ends = []
    for compiled in (True, False):
        step = sgd(bind(objective, kept), compile=compiled)
        state = step.init(0)
        for one in kept.attach(made):
            state, metrics = step(state, one)
        ends.append(metrics["loss/total"])
        assert step.compilations == int(compiled)
    torch.testing.assert_close(*ends)


def test_draws_for_a_tuple_are_those_for_a_dict(tmp_path):
    keep, pairs = {teacher.logits: sampled(5, temperature=2.0)}, []
    for kind, key in ((tuple, 2), (Record, "index")):
        kept = cache(goal_of(kind)[0], batches(kind), tmp_path / str(key), key=key, keep=keep,
                     progress=False)  # fmt: skip
        pairs.append(kept.values(batches(kind)[1])["v0"])
    assert torch.equal(pairs[0].ids, pairs[1].ids)
    assert torch.equal(pairs[0].entropy, pairs[1].entropy)


def test_prepare_is_given_the_batch_of_the_loader(tmp_path):
    objective, made, seen = goal(), batches(list), []
    kept = cache(objective, made, tmp_path, progress=False)

    def labels(state, one):
        x, y, index = one
        seen.append(type(one))
        return [x, y.clone(), index]

    def images(state, one):
        return [one[0] + 1, *one[1:]]

    step = sgd(bind(objective, kept), compile=False)
    run(step, step.init(), kept.attach(made), epochs=1, prepare=labels, progress=False)
    assert seen == [list] * 3
    with pytest.warns(UserWarning, match="prepare changes 0, which a model reads"):
        run(step, step.init(), kept.attach(made), epochs=1, prepare=images, progress=False)


def labelled(ctx):
    x, y, index = ctx["batch"]
    assert len(x) == len(index)
    return y >= 1


@pytest.mark.parametrize(
    "more",
    [
        {"last": term(mse, student.logits.mean(-1), batch[-1].float())},
        {"some": term(kl, student.logits, teacher.logits, where=batch[1] > 0)},
        {"function": term(kl, student.logits, teacher.logits, where=labelled)},
    ],
    ids=lambda x: next(iter(x)),
)
def test_refs_and_functions_see_a_list_as_it_is(tmp_path, more):
    objective, made = goal(label=batch[-2], **more), batches(list)
    kept = cache(goal(), made, tmp_path, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a function of the context may read any model
        cheap = bind(objective, kept)
    [attached] = kept.attach(made[:1])
    assert_same(objective, cheap, made[0], attached)
    assert str(fkd.check(cheap, attached)).count("read from the batch") == 1


def test_a_batch_that_is_one_tensor(tmp_path):
    torch.manual_seed(0)
    objective = fkd.Objective({"kd": term(kl, student.logits, teacher.logits)},
                              student=trainable(Net(4)), teacher=frozen(Net(8)))  # fmt: skip
    made = [one[0] for one in batches(list)]
    assert_source(objective, cache(objective, made, tmp_path, progress=False), made)
    with serve(objective) as server, served(server.url) as source:
        assert_source(objective, source, made)


class Tagger(nn.Module):
    """Looks at its neighbours within the mask."""

    def __init__(self, width):
        super().__init__()
        self.ids, self.head = nn.Embedding(9, width), nn.Linear(width, 9)

    def forward(self, input_ids, attention_mask):
        x = self.ids(input_ids) * attention_mask[..., None]
        return self.head(x + x.sum(1, keepdim=True) / attention_mask.sum(1)[:, None, None])


def tagged(lengths):
    draw = torch.Generator().manual_seed(len(lengths))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 9, mask.shape, generator=draw) * mask
    return [ids, mask, torch.randint(9, mask.shape, generator=draw)]


def tagger_goal():
    torch.manual_seed(0)
    where = batch[1] > 0
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=where),
            "ce": term(cross_entropy, student.logits, batch[2], where=where),
        },
        student=trainable(Tagger(4)), teacher=frozen(Tagger(8)),
    )  # fmt: skip


def test_a_mask_by_its_place_leaves_padding_out(tmp_path):
    objective, made = tagger_goal(), [tagged([3, 5]), tagged([7, 2, 4])]
    kept = cache(objective, made, tmp_path, mask=1, progress=False)
    assert kept.header.reading.masks == (1,) and kept.header.reading.fields == (0, 1)
    assert_source(objective, kept, made)
    ids, mask, labels = made[1]
    shorter = [ids[1:, :4], mask[1:, :4], labels[1:, :4]]
    [value] = kept.values(shorter).values()
    [before] = kept.values(made[1]).values()
    assert torch.equal(value, before[1:, :4])


def test_a_language_model_behind_vllm_reads_places_of_a_list():
    class Model(nn.Module):
        def forward(self, input_ids):
            z = torch.zeros(*input_ids.shape, 9).scatter(-1, input_ids[..., None], 2.0)
            return type("Output", (), {"logits": z})

    made = tagged([3, 5])
    with LanguageServer(Model()) as server:
        with vllm(server.url, vocab=9, k=9, tokens=0, mask=1, retries=0) as source:
            cheap = bind(tagger_goal(), source)
            [attached] = source.attach([made])
            assert list(cheap.models) == ["student"]
            assert cheap(cheap.init(), attached)[0].isfinite()


def test_what_has_no_parts_is_refused_in_words(tmp_path):
    objective = goal()
    kept = cache(objective, batches(list), tmp_path, progress=False)
    with pytest.raises(TypeError, match="a batch is a str; a tensor, or a dict, dataclass, tuple"):
        list(kept.attach(["text"]))
