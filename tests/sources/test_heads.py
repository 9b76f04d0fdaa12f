"""A head beside hidden states of a teacher that is elsewhere: behind HTTP, or one of several."""

from __future__ import annotations

import copy

import pytest
import torch

import fkd
from fkd import batch, frozen, student, teacher, term, trainable
from fkd.losses import head, head_divergence
from fkd.sources import SourceError, ahead, bind, cache, live, routed, serve, served, vllm
from tests.interop.tiny import tiny

from .language_server import LanguageServer
from .test_bind import assert_same

LM, HIDDEN = "lm_head.weight", teacher.hidden_states[-1]
VOCAB = 30


def terms(of=teacher):
    return {
        "kd": term(
            head_divergence,
            *(student.hidden_states[-1], student.param(LM)),
            *(of.hidden_states[-1], of.param(LM)),
            divergence=head.kl(),
            where=batch.attention_mask,
        )
    }


def models():
    small, big = tiny("llama"), tiny("llama")
    with torch.no_grad():
        for p in big.parameters():
            p.mul_(1.5)
    return small, big


def goal():
    small, big = models()
    return fkd.Objective(terms(), student=trainable(small), teacher=frozen(big))


def without():
    return fkd.Objective(terms(), student=trainable(models()[0]))


def texts(**more):
    draw = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    return {"input_ids": torch.randint(1, VOCAB, (2, 5), generator=draw) * mask,
            "attention_mask": mask, **more}  # fmt: skip


@pytest.mark.parametrize("wrapped", [lambda x: x, ahead], ids=["served", "ahead of it"])
def test_fkds_own_server_gives_the_head_beside_its_hidden_states(wrapped):
    objective, one = goal(), texts()
    with serve(objective) as server, served(server.url) as source:
        cheap = bind(without(), wrapped(source))
        held = cheap.models["teacher"].module
        assert [name for name, _ in held.named_parameters()] == [LM]
        assert cheap.program.runs == ("student",)
        [attached] = wrapped(source).attach([one])
        assert_same(objective, cheap, one, attached)


def test_a_parameter_that_is_not_served_is_told():
    other = terms() | {"norm": term(fkd.losses.mse, student.param("model.norm.weight"),
                                    teacher.param("model.norm.weight"))}  # fmt: skip
    with serve(goal()) as server, served(server.url) as source:
        lone = fkd.Objective(other, student=trainable(models()[0]))
        with pytest.raises(SourceError, match=r"model\.norm\.weight.*serves.*lm_head\.weight.*"):
            bind(lone, source)


def test_the_parameters_need_the_token_as_everything():
    token = "a-token-of-the-test"
    with serve(goal(), token=token) as server:
        with served(server.url, token=token) as source:
            assert source.parameters("teacher", [LM])[LM].shape[0] == VOCAB
            source.address = source.address._replace(token="another")
            source._parameters = None
            with pytest.raises(fkd.sources.ServedError, match="401"):
                source.parameters("teacher", [LM])


def test_a_language_models_server_has_no_hidden_states_and_says_what_to_do():
    with LanguageServer(models()[1]) as server:
        with vllm(server.url, vocab=VOCAB, k=VOCAB, retries=0) as source:
            with pytest.raises(SourceError) as error:
                bind(without(), source)
        told = str(error.value)
        assert "serves log-probabilities of tokens and no hidden states" in told
        assert "vllm(..., of=teacher.hidden_states[-1])" in told and "fkd serve" in told
        with vllm(server.url, vocab=VOCAB, k=VOCAB, retries=0, of=HIDDEN) as source:
            cheap = bind(without(), source)
            assert list(cheap.models) == ["student"]
            [attached] = source.attach([texts()])
            got, objective = cheap(cheap.init(), attached)[0], goal()
            torch.testing.assert_close(got, objective(objective.init(), texts())[0], rtol=1e-4,
                                       atol=1e-6)  # fmt: skip


def other_teacher(*, same_head):
    objective = goal()
    big = copy.deepcopy(objective.models["teacher"].module)
    with torch.no_grad():
        for name, p in big.named_parameters():
            if name != LM or not same_head:
                p.mul_(0.9)
    return fkd.Objective(terms(), student=objective.models["student"], teacher=frozen(big))


@pytest.mark.parametrize("kind", ["live", "cached"])
def test_one_head_is_not_applied_to_the_hidden_states_of_another_teacher(tmp_path, kind):
    one, other = goal(), other_teacher(same_head=False)
    second = live(other) if kind == "live" else cache(other, [texts()], tmp_path, progress=False)
    source = routed("by", {"one": one, "two": second})
    for objective in (one, without()):
        with pytest.raises(SourceError, match=r"lm_head\.weight'\) to what 'one' and 'two'"):
            bind(objective, source)


def test_teachers_with_one_head_are_routed_without_a_teacher_at_hand(tmp_path):
    one, other = goal(), other_teacher(same_head=True)
    kept = cache(other, [texts()], tmp_path, progress=False)
    source = routed("by", {"one": one, "two": kept})
    cheap = bind(without(), source)
    assert cheap.program.runs == ("student",)
    for by, objective in enumerate((one, other)):
        [attached] = source.attach([texts(by=torch.tensor([by, by]))])
        assert_same(objective, cheap, texts(), attached)
