"""Caches of less than every number: the most probable classes, draws, 8 bits a number."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

import fkd
from fkd import batch, call, frozen, student, teacher, term, trainable
from fkd.loops import pack, pad_batch, run, take, train_step
from fkd.losses import cross_entropy, head, head_divergence, kl, mse, soft_cross_entropy
from fkd.sources import SourceError, bind, cache, exact, sampled, scaled, top_k
from fkd.sources import open as open_cache
from tests.interop.tiny import tiny
from tests.models import CLASSES

from .test_bind import assert_same, value_and_gradient
from .test_cache import collated, goal, loader, rows, texts

KEEP = [top_k(3), top_k(3, tail=False), top_k(3, dtype=torch.float16), sampled(5), top_k(CLASSES)]


def kd(read=teacher.logits, **options):
    return goal(kd=term(kl, student.logits, read, **options))


@pytest.mark.parametrize("keep", KEEP, ids=repr)
def test_kept_is_what_the_function_gives_in_the_step(tmp_path, keep):
    made = rows()
    kept = cache(kd(), loader(made), tmp_path, keep={teacher.logits: keep}, progress=False)
    cheap = bind(kd(), kept, compare=collated(made, [3, 1, 17]))
    assert list(cheap.models) == ["student"]
    one = collated(made, [4, 5, 6, 7])
    [attached] = kept.attach([one])
    if isinstance(keep, type(sampled(1))):
        known = kept.values(one)["v0"]
        assert known.ids.dtype == torch.uint16 and known.known == 5
        a, b = value_and_gradient(cheap, attached), value_and_gradient(cheap, attached)
        assert torch.equal(a[0], b[0])
    else:
        assert_same(kd(call(keep, teacher.logits)), cheap, one, attached)
        # and so is the cache, with every number of the same distribution
        online = kd(call(keep, teacher.logits))
        whole = cache(online, loader(made), tmp_path / "exact", progress=False)
        [again] = whole.attach([one])
        assert_same(bind(online, whole), cheap, again, attached)


def test_draws_are_of_the_sample_alone(tmp_path):
    made = rows()
    keep = {teacher.logits: sampled(6)}
    a = cache(kd(), loader(made), tmp_path / "a", keep=keep, progress=False)
    shuffled = [made[i] for i in torch.randperm(20).tolist()]
    b = cache(kd(), loader(shuffled, 7), tmp_path / "b", keep=keep, progress=False)
    one = collated(made, [11, 2, 9, 9])
    x, y = a.values(one)["v0"], b.values(one)["v0"]
    assert torch.equal(x.index(), y.index())
    torch.testing.assert_close(x.entropy, y.entropy)
    assert torch.equal(x.index()[2], x.index()[3]) and not torch.equal(x.index()[0], x.index()[1])


@pytest.mark.plain
@pytest.mark.parametrize("keep", [top_k(3), sampled(4), top_k(3, temperature=2.0)], ids=repr)
def test_what_the_terms_cannot_read_is_refused_before_anything_is_written(tmp_path, keep):
    wrong = goal(a=term(mse, student.logits, teacher.logits))
    with pytest.raises(SourceError, match=r"known on . of . classes, and mse needs all"):
        cache(wrong, loader(rows()), tmp_path, keep={teacher.logits: keep}, progress=False)
    other = 1.0 if keep.temperature == 2.0 else 2.0
    with pytest.raises(
        SourceError, match=rf"a term cannot read .* temperature={keep.temperature:g}"
    ):
        cache(kd(temperature=other), loader(rows()), tmp_path, keep={teacher.logits: keep},
              progress=False)  # fmt: skip
    without = kd(temperature=other)  # a student, who could say so by itself
    without = fkd.Objective(without.terms, teacher=without.models["teacher"])
    with pytest.raises(SourceError, match=rf"'kd' reads it at temperature {other}. Keep "):
        cache(without, loader(rows()), tmp_path, keep={teacher.logits: keep}, progress=False)
    assert not list(tmp_path.glob("*.safetensors")) and not (tmp_path / "header.json").exists()


def test_what_is_no_way_to_keep_is_refused(tmp_path):
    def keeping(keep, **options):
        return cache(kd(), loader(rows()), tmp_path, keep=keep, progress=False, **options)

    with pytest.raises(SourceError, match=r"no fractions.*scaled"):
        keeping({teacher.logits: exact(torch.int8)})
    with pytest.raises(SourceError, match=r"there are . classes"):
        keeping({teacher.logits: top_k(100)})
    with pytest.raises(SourceError, match="not a value of frozen models alone"):
        keeping({teacher.logits: top_k(2, of=student.logits)})
    with pytest.raises(SourceError, match="cannot be scaled"):
        scaled(torch.int16)


class _Rounded(torch.nn.Module):
    """Classes 0 to 7 are nearly equal: how many rows a batch has decides about their order."""

    def forward(self, x):
        draw = torch.Generator().manual_seed(len(x))
        rounding = 1e-4 * torch.rand(len(x), 8, generator=draw)
        return torch.cat([x[:, :1] * 1e-3 + 1 + rounding, x.new_zeros(len(x), 92)], dim=-1)


def test_the_order_of_nearly_equal_classes_is_a_matter_of_rounding(tmp_path):
    objective = fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=trainable(torch.nn.Linear(3, 100), inputs=lambda batch: {"input": batch["x"]}),
        teacher=frozen(_Rounded()),
    )
    data = [{"x": x} for x in torch.randn(6, 3)]
    kept = cache(
        objective, DataLoader(data, 4), tmp_path, keep={teacher.logits: top_k(8)}, progress=False
    )
    (values,) = kept.values({"x": torch.stack([row["x"] for row in data])}).values()
    assert set(values.ids.flatten().tolist()) == set(range(8))


def test_another_way_to_keep_is_another_cache(tmp_path):
    made = rows()
    cache(kd(), loader(made), tmp_path, keep={teacher.logits: top_k(3)}, progress=False)
    for other in (top_k(2), sampled(3), exact()):
        with pytest.raises(SourceError, match=r"top_k\(3\)"):
            cache(kd(), loader(made), tmp_path, keep={teacher.logits: other}, progress=False)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.int8, 1 / 254), (torch.float8_e4m3fn, 1 / 16), (torch.float8_e5m2, 1 / 8)],
)
def test_eight_bits_a_number(tmp_path, dtype, most):
    read = teacher.hidden_states[1]
    objective = goal(a=term(mse, student.hidden_states[1], read))
    made = rows()
    kept = cache(objective, loader(made), tmp_path, keep={read: scaled(dtype)}, progress=False)
    one = collated(made, [4, 5, 6, 7])
    bind(objective, kept, compare=one)
    values = kept.values(one)["v0"]
    live = fkd.sources.live(objective).values(one)["v0"]
    assert values.dtype == torch.float32
    largest = live.abs().amax(-1, keepdim=True)
    allowed = largest * most if dtype is torch.int8 else (live.abs() * most).maximum(largest / 4e5)
    assert bool(((values - live).abs() <= 1.001 * allowed).all())
    assert bool((values != live).any())


def lm(read_hidden=True, **options):
    big = tiny("llama")
    torch.manual_seed(1)
    for p in big.parameters():
        p.data += 0.3 * torch.randn_like(p)
    heads = (
        (student.hidden_states[-1], student.param("lm_head.weight")),
        (teacher.hidden_states[-1], teacher.param("lm_head.weight")),
    )
    return fkd.Objective(
        {
            "kd": term(
                head_divergence, *heads[0], *heads[1], divergence=head.kl(),
                where=batch.attention_mask, **options,
            )
        },
        student=trainable(tiny("llama")), teacher=frozen(big),
    )  # fmt: skip


def blocks(count=6):
    return [pad_batch(texts(count)[i : i + 2], edges=[10]) for i in range(0, count, 2)]


@pytest.mark.parametrize("keep", [exact(), scaled(), top_k(4, of=teacher.logits), None], ids=str)
def test_a_head_reads_hidden_states_or_the_most_probable_classes(tmp_path, keep):
    objective, made = lm(), blocks()
    wanted = {} if keep is None else {teacher.hidden_states[-1]: keep}
    kept = cache(objective, made, tmp_path, keep=wanted, progress=False)
    cheap = bind(objective, kept, compare=made[0])
    one = {k: v.flip(0) for k, v in made[1].items()}
    [attached] = kept.attach([one])
    if keep is None or keep == exact():
        assert_same(objective, cheap, one, attached)
    else:
        a, b = value_and_gradient(objective, one), value_and_gradient(cheap, attached)
        close = keep == scaled()
        assert float(b[0]) == pytest.approx(float(a[0]), rel=0.05) if close else b[0] < a[0]
    held = [x for x in cheap.models["teacher"].module.parameters()] if "teacher" in cheap.models \
           else []  # fmt: skip
    assert sum(x.numel() for x in held) <= 32 * 64
    known = kept.values(one)["v0"]
    if isinstance(keep, type(top_k(1))):
        assert known.vocab > 4 and known.known == 4


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (2, 0), (1, 2)])
def test_training_from_it_is_training_with_it(tmp_path, accumulate, workers):
    made = rows()
    online = kd(call(top_k(3), teacher.logits))
    cache(kd(), loader(made), tmp_path, keep={teacher.logits: top_k(3)}, progress=False)
    kept = open_cache(tmp_path)
    cached = (
        loader(made, num_workers=workers,
               collate_fn=kept.attach_collate(torch.utils.data.default_collate))
        if workers
        else kept.attach(loader(made))
    )  # fmt: skip
    ends = []
    for one, data in ((online, loader(made)), (bind(kd(), kept), cached)):
        step = train_step(
            one, lambda p: torch.optim.SGD(p, lr=0.1), compile=False, accumulate=accumulate
        )
        ends.append(run(step, step.init(3), data, epochs=2, progress=False).state)
    for name, p in ends[0].trainable["student"].items():
        torch.testing.assert_close(p, ends[1].trainable["student"][name], rtol=1e-5, atol=1e-7)


def test_positions_are_cut_and_packed_in_the_step(tmp_path):
    def shifted(x):
        return call(take, x, batch.packed)

    objective = goal(
        a=term(kl, shifted(student.logits), shifted(teacher.logits), where=batch.packed.kept),
        b=term(soft_cross_entropy, student.logits[:, 1:], teacher.logits[:, :-1]),
        c=term(cross_entropy, student.logits, batch.y),
    )
    made = [{**collated(rows(), range(4))} for _ in range(1)]
    made[0]["packed"] = pack(torch.rand(4, 3) > 0.4, multiple=4)
    kept = cache(objective, made, tmp_path, keep={teacher.logits: top_k(CLASSES)}, progress=False)
    assert kept.codes == ["teacher.logits"]
    [attached] = kept.attach(made)
    a, b = (
        value_and_gradient(objective, made[0]),
        value_and_gradient(bind(objective, kept), attached),
    )
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_evaluation_from_it(tmp_path):
    made = rows()
    for keep in (top_k(3), sampled(4)):
        folder = tmp_path / repr(keep)[:5]
        kept = cache(kd(), loader(made), folder, keep={teacher.logits: keep}, progress=False)
        step = train_step(bind(kd(), kept), lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
        values = fkd.loops.evaluate(step.objective, step.init(), kept.attach(loader(made)))
        full = train_step(kd(), lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
        whole = fkd.loops.evaluate(full.objective, full.init(), loader(made))
        assert values["agreement"] == whole["agreement"]


def test_metrics_read_what_is_kept_in_place_of_the_teacher(tmp_path):
    made = loader(rows())
    kept = cache(kd(), made, tmp_path, progress=False)
    without = fkd.Objective(kd().terms, student=kd().models["student"])
    metrics = {
        "same": fkd.metric(fkd.metrics.agreement, student.logits, teacher.logits),
        "sure": fkd.metric(largest, torch.softmax(teacher.logits / 2, -1)),
        "sum": fkd.loops.collect(lambda z: float(sum(x.sum() for x in z)), teacher.logits),
    }
    values = []
    for one, data in ((kd(), made), (bind(without, kept), kept.attach(made))):
        step = train_step(one, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
        run(step, step.init(), data, epochs=1, dev=data, metrics=metrics, progress=False)
        found = fkd.loops.evaluate(one, step.init(), data, metrics=metrics)
        values.append({name: found[name] for name in metrics})
    assert values[0] == values[1]


def largest(p):
    return p.amax(-1)


class Words:
    def __init__(self, words, template=None):
        self.words, self.chat_template = words, template

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


def test_another_tokenizer_or_template_is_refused(tmp_path):
    def make(tokenizer):
        return cache(kd(), loader(rows()), tmp_path, tokenizer=tokenizer, progress=False)

    kept = make(Words("abc", "{{ x }}"))
    kept.verify_tokenizer(Words("abc", "{{ x }}"))
    make(Words("abc", "{{ x }}"))
    for other, what in ((Words("abd", "{{ x }}"), "vocabulary"), (Words("abc", "x"), "template")):
        with pytest.raises(SourceError, match=what):
            kept.verify_tokenizer(other)
        with pytest.raises(SourceError, match=what):
            make(other)
    with pytest.raises(SourceError, match="get_vocab"):
        make("bert-base-uncased")
    without = cache(kd(), loader(rows()), tmp_path / "b", progress=False)
    with pytest.raises(SourceError, match="does not say which tokenizer"):
        without.verify_tokenizer(Words("abc"))


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # Inductor's own imports
def test_a_compiled_step_and_a_compiled_teacher(tmp_path):
    made, losses = rows(), []
    for compile in (False, True):
        folder = tmp_path / str(compile)
        kept = cache(kd(), loader(made), folder, keep={teacher.logits: sampled(4)},
                     compile=compile, progress=False)  # fmt: skip
        step = train_step(
            bind(kd(), kept), lambda p: torch.optim.SGD(p, lr=0.1), compile=compile, accumulate=2
        )
        state = step.init()
        for part in kept.attach(DataLoader(made, 4)):
            state, metrics = step(state, part)
            losses.append(float(metrics["loss/total"]))
    assert losses[:5] == pytest.approx(losses[5:], rel=1e-4)
