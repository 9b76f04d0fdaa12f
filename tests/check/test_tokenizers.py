"""Student and teacher with tokenizers and templates that differ."""

from __future__ import annotations

import copy

import pytest
import torch

import fkd
from fkd import batch, call, student, teacher, term
from fkd.losses import head, head_divergence, kl, shared_kl, uld

transformers = pytest.importorskip("transformers")

from fkd.loops.language import fields_of  # noqa: E402
from tests.loops.text.tokenizers import CHATML, byte_level, sentence_piece  # noqa: E402


def causal(vocab: int = 400) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def fields() -> dict[str, torch.Tensor]:
    ids = torch.randint(300, (2, 5))
    return {"input_ids": ids, "teacher_input_ids": ids.flip(1)}


def objective(one: fkd.Term, *, own_ids: bool = False, vocab: int = 400) -> fkd.Objective:
    inputs = fields_of("teacher_") if own_ids else None
    return fkd.Objective(
        {"kd": one},
        student=fkd.trainable(causal(vocab)),
        teacher=fkd.frozen(causal(vocab), inputs=inputs),
    )


def tokenizers(theirs, template: str | None = None):
    ours, other = copy.deepcopy(byte_level()), copy.deepcopy(theirs)
    ours.chat_template, other.chat_template = CHATML, template or CHATML
    return {"student": ours, "teacher": other}


LOGITS = term(kl, student.logits, teacher.logits)


def test_equal_tokenizers_are_said_to_be_so():
    report = fkd.check(objective(LOGITS), fields(), tokenizers=tokenizers(byte_level()))
    assert "'student' and 'teacher'" in str(report) and "are the same" in str(report)
    assert "are the same" in report._repr_html_()
    assert fkd.check(objective(LOGITS), fields()).tokenizers == ()


def test_templates_that_differ_are_in_the_report():
    both = tokenizers(byte_level(), template="{% for m in messages %}{{ m.content }}{% endfor %}")
    report = fkd.check(objective(LOGITS), fields(), tokenizers=both)
    assert "chat templates differ" in report.tokenizers[0]
    both["teacher"].chat_template = "{{ raise_exception('only pairs') }}"
    report = fkd.check(objective(LOGITS), fields(), tokenizers=both)
    assert "refused: only pairs" in report.tokenizers[0]


def test_more_entries_with_the_same_ids_are_no_mistake():
    more = copy.deepcopy(byte_level())
    more.add_tokens(["<tool>"])
    report = fkd.check(objective(LOGITS), fields(), tokenizers=tokenizers(more))
    assert "330 and 331 entries; the ids that both have are the same" in report.tokenizers[0]


def test_ids_that_mean_other_tokens_are_mistakes():
    both = tokenizers(sentence_piece())
    with pytest.raises(fkd.ObjectiveError) as error:
        fkd.check(objective(LOGITS), fields(), tokenizers=both)
    said = str(error.value)
    assert "both read batch.input_ids" in said and "fields_of('teacher_')" in said
    assert "term 'kd': kl compares the logits of each id" in said and "shared_vocabulary" in said
    with pytest.raises(fkd.ObjectiveError, match="compares the logits") as error:
        fkd.check(objective(LOGITS, own_ids=True), fields(), tokenizers=both)
    assert "both read" not in str(error.value)


def test_losses_over_two_vocabularies_are_fine():
    both, ids = tokenizers(sentence_piece()), torch.arange(5)
    options = {"student_ids": ids, "teacher_ids": ids}
    for one in (
        term(uld, student.logits, teacher.logits),
        term(shared_kl, student.logits, teacher.logits, **options),
        term(kl, student.logits[..., :5], teacher.logits[..., :5]),
    ):
        report = fkd.check(objective(one, own_ids=True), fields(), tokenizers=both)
        assert "ids mean different tokens" in report.tokenizers[0]


def test_a_head_needs_the_shared_vocabulary():
    both, ids = tokenizers(sentence_piece()), torch.arange(5)
    sides = {
        "student_hidden": student.hidden_states[-1],
        "student_weight": student.param("lm_head.weight"),
        "teacher_hidden": teacher.hidden_states[-1],
        "teacher_weight": teacher.param("lm_head.weight"),
        "divergence": head.kl(),
    }
    shared = {"student_vocabulary": ids, "teacher_vocabulary": ids}
    good = objective(term(head_divergence, **sides, **shared), own_ids=True)
    assert fkd.check(good, fields(), tokenizers=both).tokenizers
    with pytest.raises(fkd.ObjectiveError, match="student_vocabulary="):
        bad = objective(term(head_divergence, **sides), own_ids=True)
        fkd.check(bad, fields(), tokenizers=both)


def test_every_mistake_is_listed_at_once():
    wrong = term(kl, student.logits, teacher.logits, where=batch.nothing)
    with pytest.raises(
        fkd.ObjectiveError, match=r"nothing[\s\S]*both read|both read[\s\S]*nothing"
    ):
        fkd.check(objective(wrong), fields(), tokenizers=tokenizers(sentence_piece()))


def test_a_vocabulary_without_embeddings_is_a_mistake():
    with pytest.raises(fkd.ObjectiveError, match=r"'student' embeds 310 ids.*up to 329.*resize"):
        fkd.check(objective(LOGITS, vocab=310), fields(), tokenizers=tokenizers(byte_level()))


def test_logits_at_aligned_positions_are_compared_by_id():
    def take(x, positions):
        return x[:, positions]

    at = torch.arange(2)
    sides = [call(take, x.logits, at) for x in (student, teacher)]
    with pytest.raises(fkd.ObjectiveError, match="compares the logits of each id"):
        one = objective(term(kl, *sides), own_ids=True)
        fkd.check(one, fields(), tokenizers=tokenizers(sentence_piece()))


def test_a_teacher_that_a_source_stands_for_is_compared(tmp_path):
    live = objective(LOGITS)
    rows = [{"input_ids": x} for x in fields()["input_ids"]]
    loader = torch.utils.data.DataLoader(rows, 2)
    source = fkd.sources.cache(live, loader, tmp_path, progress=False)
    bound, loader = fkd.sources.bind(live, source), source.attach(loader)
    one = next(iter(loader))
    assert fkd.check(bound, one, tokenizers=tokenizers(byte_level())).tokenizers
    with pytest.raises(fkd.ObjectiveError, match="compares the logits of each id"):
        fkd.check(bound, one, tokenizers=tokenizers(sentence_piece()))


def test_names_and_tokenizers_are_expected():
    both = tokenizers(byte_level())
    with pytest.raises(
        ValueError, match=r"tokenizers has 'techer'; the models are student, teacher"
    ):
        fkd.check(objective(LOGITS), fields(), tokenizers={"techer": both["teacher"]})
    with pytest.raises(ValueError, match=r"tokenizers\['student'\] is a str"):
        fkd.check(objective(LOGITS), fields(), tokenizers={"student": "gpt2"})
