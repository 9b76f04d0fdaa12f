"""Language models behind vLLM and SGLang: the values, and everything that goes wrong."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

import fkd
from fkd import batch, call, frozen, student, teacher, term, trainable
from fkd.loops import LoopError, run, train_step
from fkd.losses import kl, soft_cross_entropy
from fkd.sources import ServedError, SourceError, ahead, bind, live, routed, sglang, top_k, vllm
from tests.interop.tiny import tiny

from .language_server import LanguageServer
from .test_ahead import assert_same_state

VOCAB = 30
QUICK = {"timeout": 5.0, "retries": 1, "vocab": VOCAB}
ENGINES = {"vllm": vllm, "sglang": sglang}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return tiny("llama"), tiny("llama")


def texts(count=6, seed=1):
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(1, 30, (3, 7), generator=draw)
        mask = torch.ones(3, 7, dtype=torch.int64)
        mask[1, 5:] = 0
        mask[2, : 2 if i % 2 else 0] = 0  # on the left
        position = (mask.cumsum(1) - 1).clamp_min(0)
        made.append({"input_ids": ids * mask, "attention_mask": mask, "position_ids": position})
    return made


def goal(models, loss=kl, of=teacher.logits):
    small, big = models
    return fkd.Objective(
        {"kd": term(loss, student.logits, of, where=batch.attention_mask)},
        student=trainable(small),
        teacher=frozen(big),
    )


def value_and_gradient(objective, made):
    parts = objective.init()
    leaves = {n: x.requires_grad_() for n, x in parts.trainable["student"].items()}
    loss, _ = objective(parts._replace(trainable={"student": leaves}), made)
    return loss.detach(), torch.autograd.grad(loss, list(leaves.values()))


def assert_close(one, other, made, attached):
    a, b = value_and_gradient(one, made), value_and_gradient(other, attached)
    torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-6)
    for x, y in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", [kl, soft_cross_entropy])
def test_the_top_tokens_of_a_server_are_those_of_the_model(models, engine, loss):
    local = goal(models, loss, call(top_k(8), teacher.logits))
    served = goal(models, loss)
    with LanguageServer(models[1]) as server:
        with ENGINES[engine](server.url, k=8, **QUICK) as source:
            cheap = bind(served, source)
            assert list(cheap.models) == ["student"]
            for made, attached in zip(texts(), source.attach(texts()), strict=True):
                assert_close(local, cheap, made, attached)
    known = attached[f"fkd.sources/{source.name}"]["v0"]
    theirs = live(local).values(made)["v0"]
    there = made["attention_mask"].bool()
    assert torch.equal(known.ids[there].long(), theirs.ids[there].long())
    assert known.ids.dtype == torch.uint16 and known.shape == (3, 7, VOCAB)
    torch.testing.assert_close(known.log_rest[there], theirs.log_rest[there], atol=1e-5, rtol=0)
    assert bool(known.log_probs.isfinite().all())
    total = known.log_probs.exp().sum(-1) + known.log_rest.exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_all_tokens_are_the_whole_teacher(models):
    objective = goal(models)
    with LanguageServer(models[1]) as server, vllm(server.url, k=VOCAB, **QUICK) as source:
        cheap = bind(objective, source)
        [made] = texts(1)
        [attached] = source.attach([made])
        assert_close(objective, cheap, made, attached)


def test_batches_without_a_mask_and_a_single_token(models):
    with LanguageServer(models[1]) as server, vllm(server.url, k=4, **QUICK) as source:
        for length in (1, 5):
            ids = torch.randint(1, 30, (2, length))
            known = source.values({"input_ids": ids})["v0"]
            row = torch.log_softmax(models[1](input_ids=ids).logits, -1)
            top = row.topk(4).values
            torch.testing.assert_close(known.log_probs, top, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_candidates_are_scored_exactly(models, engine):
    ids = [5, 3, 29]
    [made] = texts(1)
    with LanguageServer(models[1]) as server:
        with ENGINES[engine](server.url, candidates=ids, **QUICK) as source:
            known = source.values(made)["v0"]
    there = made["attention_mask"].bool()
    z = models[1](**made).logits[there].log_softmax(-1)
    assert set(known.ids[there].flatten().tolist()) == set(ids)
    expected = z.gather(-1, known.ids[there].long())
    torch.testing.assert_close(known.log_probs[there], expected, rtol=1e-4, atol=1e-5)
    rest = torch.log1p(-expected.exp().sum(-1))
    torch.testing.assert_close(known.log_rest[there], rest, rtol=1e-3, atol=1e-5)


def test_candidates_of_each_position_come_with_the_batch(models):
    made = {**texts(1)[0], "asked": torch.rand(3, 7, VOCAB).argsort(-1)[..., :5]}
    there = made["attention_mask"].bool()
    with LanguageServer(models[1]) as server:
        with vllm(server.url, candidates="asked", k=5, **QUICK) as source:
            known = source.values(made)["v0"]
            assert "prompt_logprobs" not in str(server.asked[0])
            with pytest.raises(SourceError, match="twice at a position"):
                source.values({**made, "asked": torch.zeros(3, 7, 5, dtype=torch.int64)})
            with pytest.raises(SourceError, match=r"\(3, 7, 5\) is expected"):
                source.values({**made, "asked": made["asked"][..., :4]})
    fields = {k: v for k, v in made.items() if k != "asked"}
    z = models[1](**fields).logits.log_softmax(-1)
    assert torch.equal(
        known.ids[there].long().sort(-1).values, made["asked"][there].sort(-1).values
    )
    expected = z.gather(-1, known.ids.long())[there]
    torch.testing.assert_close(known.log_probs[there], expected, rtol=1e-4, atol=1e-5)


def place(fn):
    """A fault in what is said of the third token."""

    def fault(answer):
        places = answer["choices"][0]["prompt_logprobs"]
        places[2] = fn(places[2])
        return answer

    return fault


def first_to(**change):
    def fn(entries):
        name = next(iter(entries))
        return {**entries, name: {**entries[name], **change}}

    return place(fn)


def shorter(answer):
    answer["choices"][0]["prompt_logprobs"].pop()
    return answer


FAULTS = {
    "500": (500, "failed 2 times.* 500 .*overloaded"),
    "429": (429, "failed 2 times.* 429 "),
    "stall": (1.5, "failed 2 times.* no answer in 1 s"),
    "not JSON": (lambda a: b"<html>", "is not JSON"),
    "no choices": (lambda a: {"choices": []}, "no such answer"),
    "an error": (lambda a: {"error": "x"}, "no such answer"),
    "no logprobs": (lambda a: {"choices": [{"prompt_logprobs": None}]}, "no prompt_logprobs for"),
    "short": (shorter, "[0-9]+ prompt_logprobs for [0-9]+ tokens"),
    "short place": (place(lambda e: dict(list(e.items())[:2])), "[12] tokens at a position"),
    "null place": (place(lambda e: None), "nothing is said of a position"),
    "null number": (first_to(logprob=None), "no such answer"),
    "nan": (first_to(logprob=math.nan), "nan"),
    "infinite": (first_to(logprob=math.inf), "not finite"),
    "logits": (first_to(logprob=3.0), "add up to"),
    "other token": (place(lambda e: {str(int(i) + 100): x for i, x in e.items()}),
                    "nothing is said of the token"),
    "wrong id": (place(lambda e: {**e, "70000": {"logprob": -0.01}}), "the id 70000, and vocab"),
    "negative id": (place(lambda e: {**e, "-3": {"logprob": -0.01}}), "and vocab is 30"),
    "no id": (place(lambda e: {**e, "x": {"logprob": -0.01}}), "no such answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_pass_or_are_an_error(models, name):
    fault, words = FAULTS[name]
    made = {"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}
    with LanguageServer(models[1], [None, fault, None, fault, fault]) as server:
        options = {**QUICK, "timeout": 1.0 if name == "stall" else 5.0}
        with vllm(server.url, k=6, requests=1, **options) as source:
            right, again = (source.values(made)["v0"] for _ in range(2))
            assert torch.equal(right.log_probs, again.log_probs)
            with pytest.raises(ServedError, match=words):
                source.values(made)
            assert source.values(made)["v0"].known == 6


@pytest.mark.parametrize("name", ["500", "stall", "nan"])
def test_faults_pass_or_end_the_run_after_its_checkpoint(models, name, tmp_path):
    fault, words = FAULTS[name]
    made = texts(4)
    timeout = 1.0 if name == "stall" else 5.0

    def train(server, folder):
        options = {"retries": 1, "vocab": VOCAB, "timeout": timeout, "requests": 1, "k": 6}
        with vllm(server.url, **options) as source:
            step = train_step(bind(goal(models), source), lambda p: torch.optim.SGD(p, lr=0.1),
                              compile=False)  # fmt: skip
            return run(step, step.init(), source.attach(made), epochs=1, checkpoint_dir=folder,
                       progress=False)  # fmt: skip

    with LanguageServer(models[1], [None] * 4 + [fault]) as server:
        once = train(server, None).state
    with LanguageServer(models[1], [None] * 7 + [fault] * 2) as server:
        with pytest.raises(LoopError, match="batch 2 of epoch 0") as error:
            train(server, tmp_path)
        assert isinstance(error.value.__cause__, ServedError)
        with pytest.raises(ServedError, match=words):
            raise error.value.__cause__
        end = train(server, tmp_path).state
    assert_same_state(once, end)


def sglang_fault(fn):
    def fault(answer):
        fn(answer["meta_info"])
        return answer

    return fault


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda m: m["input_token_logprobs"].pop(), "input_token_logprobs for"),
        (lambda m: m["input_top_logprobs"].pop(), "input_top_logprobs for"),
        (lambda m: m.pop("input_top_logprobs"), "no such answer"),
        (lambda m: m["input_token_logprobs"][1].__setitem__(1, 77), "about other tokens"),
        (lambda m: m["input_top_logprobs"].__setitem__(2, None), "nothing is said of a position"),
        (lambda m: m["input_top_logprobs"][2].pop(), "3 tokens at a position"),
        (lambda m: m["input_top_logprobs"][2][0].__setitem__(0, math.nan), "nan"),
        (lambda m: m["input_top_logprobs"][2][0].__setitem__(1, 99), "the id 99"),
        (lambda m: m["input_top_logprobs"][2][0].__setitem__(
            1, m["input_top_logprobs"][2][1][1]), "one id twice"),
    ],
)  # fmt: skip
def test_faults_of_sglang(models, fault, words):
    [made] = texts(1)
    with LanguageServer(models[1], [sglang_fault(fault)] * 2) as server:
        with sglang(server.url, k=4, requests=1, **QUICK) as source:
            with pytest.raises(ServedError, match=words):
                source.values(made)
            assert source.values(made)["v0"].known == 4


def test_what_the_server_does_not_allow_is_not_asked_again(models):
    with LanguageServer(models[1], most=5, key="key") as server:
        with vllm(server.url, k=6, token="key", **QUICK) as source:
            with pytest.raises(ServedError, match=r"refuses: 400 .*greater than max allowed"):
                source.values({"input_ids": torch.ones(1, 4, dtype=torch.int64)})
            assert len(server.asked) == 1
        with pytest.raises(ServedError, match="refuses: 401"):
            vllm(server.url, **QUICK)
        with pytest.raises(SourceError, match="no model 'huge'; it has big, other"):
            vllm(server.url, model="huge", token="key", **QUICK)


def test_so_many_requests_at_a_time_in_their_order(models):
    made = texts(4)
    with LanguageServer(models[1], [0.1] * 12) as server:
        with vllm(server.url, k=4, requests=5, batches=2, **QUICK) as source:
            bind(goal(models), source)
            given = list(source.attach(made))
    with LanguageServer(models[1]) as plain, vllm(plain.url, k=4, requests=1, **QUICK) as source:
        for one, other in zip(given, source.attach(made), strict=True):
            field = f"fkd.sources/{source.name}"
            assert torch.equal(one[field]["v0"].ids.int(), other[field]["v0"].ids.int())
    assert 1 < server.most_at_once <= 5


def test_names_places_and_workers(models):
    with LanguageServer(models[1]) as server, vllm(server.url, k=4, **QUICK) as source:
        cheap = bind(goal(models), source)
        [attached] = source.attach(texts(1))
        text = str(fkd.check(cheap, attached))
        assert f"where {source.name} writes it (served by vllm at {server.url})" in text
        other = pickle.loads(pickle.dumps(source))
        assert other.name == source.name
        with sglang(server.url, k=4, **QUICK) as another:
            assert another.name.startswith("sglang-") and another.key(teacher.logits) == "v0"
        for outer in (ahead(source), routed("by", {"a": source})):
            bind(goal(models), outer)
            made = {**texts(1)[0], "by": ["a"] * 3}
            [attached] = outer.attach([made])
            assert attached[f"fkd.sources/{outer.name}"]["v0"].known == 4


def test_sparse_distributions_travel_from_fkds_own_server(models):
    from fkd.sources import serve, served

    local = goal(models, kl, call(top_k(8), teacher.logits))
    with serve(local) as server, served(server.url) as source:
        cheap = bind(local, source)
        for made, attached in zip(texts(2), source.attach(texts(2)), strict=True):
            a, b = value_and_gradient(local, made), value_and_gradient(cheap, attached)
            assert torch.equal(a[0], b[0])
            assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


@pytest.mark.plain
def test_wrong_arguments_are_refused():
    for options, words in (
        ({"k": 0}, "k is 0"),
        ({"k": 31}, "k is 31"),
        ({"candidates": [1, 1]}, "an id twice"),
        ({"candidates": [40]}, "outside of 0 to 29"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"batches": -1}, "batches=-1"),
    ):
        with pytest.raises(SourceError, match=words):
            vllm("127.0.0.1:1", vocab=VOCAB, **options)
    with pytest.raises(SourceError, match="the same ids at all"):
        sglang("127.0.0.1:1", vocab=VOCAB, candidates="field")


def test_batches_that_do_not_fit_are_refused(models):
    ids = torch.ones(2, 3, dtype=torch.int64)
    with LanguageServer(models[1]) as server, vllm(server.url, k=4, **QUICK) as source:
        for made, words in (
            ({"x": ids}, "no field 'input_ids'"),
            ({"input_ids": ids.float()}, "float32"),
            (
                {"input_ids": ids, "attention_mask": ids[:, :2]},
                r"'attention_mask' has shape \(2, 2",
            ),
            ({"input_ids": ids, "attention_mask": ids * 0}, "row 0 of the batch has no token"),
        ):
            with pytest.raises(SourceError, match=words):
                source.values(made)
        assert not server.asked
