"""The student alone, in files that need no fkd; and the layers compared at the end of a run."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import LoopError, export, fit, linear_cka, report, train_step
from fkd.losses import cross_entropy, kl, mse

from ..training import Net, adamw, batches, make, train

BERT = dict(vocab_size=30, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)


def bert(width: int, layers: int) -> nn.Module:
    torch.manual_seed(layers)
    config = hf.BertConfig(hidden_size=width, num_hidden_layers=layers, **BERT)
    return hf.BertForSequenceClassification(config)


def text(count: int = 2) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]] * 2)
    return [
        {
            "input_ids": torch.randint(0, 30, (4, 5), generator=g) * mask,
            "attention_mask": mask,
            "labels": torch.randint(0, 2, (4,), generator=g),
        }
        for _ in range(count)
    ]


def bert_step(**options):
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "labels": term(cross_entropy, student.logits, batch.labels),
            "hidden": term(
                mse,
                fkd.module("project")(student.hidden_states[1]),
                teacher.hidden_states[2],
                where=batch.attention_mask,
            ),
        },
        student=fkd.trainable(bert(8, 1)),
        teacher=fkd.frozen(bert(12, 2)),
        project=fkd.trainable(nn.Linear(8, 12)),
    )
    return train_step(objective, adamw, compile=False, **options)


def test_a_plain_module_is_its_state_dict(tmp_path):
    state = train(None)[-1].state
    step, _ = make()
    module = export(step.objective, state, "student", tmp_path, adapters=["project"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.safetensors",
        "project.safetensors",
    ]
    loaded = Net(6)
    loaded.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = batches()[0]["x"]
    assert torch.equal(loaded.eval()(x)["logits"], module(x)["logits"])
    assert torch.equal(module.head.weight, state.trainable["student"]["head.weight"])
    assert torch.equal(module.norm.running_mean, state.buffers["student"]["norm.running_mean"])
    adapter = load_file(tmp_path / "project.safetensors")
    assert torch.equal(adapter["weight"], state.trainable["project"]["weight"])
    original = step.objective.program.model("student").module
    assert not torch.equal(original.head.weight, module.head.weight)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step, state = make()
    slow = export(step.objective, state, "slow")
    assert torch.equal(slow.head.weight, state.frozen["slow"]["head.weight"])
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_none_is_refused():
    step, state = make()
    with pytest.raises(ValueError, match=r"no model 'studnet'. Did you mean 'student'"):
        export(step.objective, state, "studnet")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_transformers_run_from_first_to_last(tmp_path, precision):
    """Trained, logged, compared layer by layer, exported, and loaded without fkd."""
    step = bert_step(precision=precision)
    events = list(
        fit(step, step.init(), text(), epochs=1, dev=text(), log_dir=tmp_path / "log",
            log_every=1, progress=False)
    )  # fmt: skip
    state = events[-1].state
    assert [e.values["tokens_per_s"] > 0 for e in events if e.kind == "log"] == [True, True]
    found = json.loads((tmp_path / "log" / "similarity.json").read_text())
    assert (found["student_layers"], found["teacher_layers"]) == (["0", "1"], ["0", "1", "2"])
    exported = export(step.objective, state, "student", tmp_path / "model", adapters=["project"])
    loaded = hf.BertForSequenceClassification.from_pretrained(tmp_path / "model")
    one = text()[0]
    inputs = {k: one[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        mine = loaded.eval()(**inputs, output_hidden_states=True)
        assert torch.equal(mine.logits, exported(**inputs).logits)
        aim = step.objective.program.model("teacher").module.eval()
        theirs = aim(**inputs, output_hidden_states=True)
    values = linear_cka(mine.hidden_states, theirs.hidden_states, where=one["attention_mask"])
    close = 1e-5 if precision == "fp32" else 2e-2
    torch.testing.assert_close(torch.tensor(found["values"]).double(), values, atol=close, rtol=0)
    assert not any("teacher" in p.name for p in (tmp_path / "model").iterdir())
    assert (tmp_path / "model" / "project.safetensors").exists()
    page = report(tmp_path / "log").read_text()
    assert "Similarity of student and teacher layers" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_layers_that_cannot_be_compared_do_not_fail_the_run(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise ValueError("other positions")

    monkeypatch.setattr("fkd.loops._run.similarity_map.linear_cka", fail)
    step = bert_step()
    with caplog.at_level(logging.WARNING, "fkd"):
        events = list(
            fit(step, step.init(), text(), steps=1, dev=text(1), log_dir=tmp_path, progress=False)
        )
    assert events[-1].kind == "end" and "other positions" in caplog.text
    assert not (tmp_path / "similarity.json").exists()


def test_objectives_without_hidden_states_have_no_map(tmp_path):
    train(None, epochs=1, log_dir=tmp_path, dev=batches())
    assert not (tmp_path / "similarity.json").exists()


def test_a_faulty_batch_of_text_is_named():
    step = bert_step()
    data = text(3)
    del data[2]["attention_mask"]
    with pytest.raises(LoopError, match=r"batch 2 of epoch 0 .*missing: batch\['attention_mask'\]"):
        list(fit(step, step.init(), data, epochs=1))


@pytest.mark.parametrize("name", ["../../x", "a/b", "/x", "", ".", "..", "model", "a\\b"])
def test_an_adapter_is_written_into_the_folder_or_refused(tmp_path, name):
    objective = fkd.Objective(
        {"ce": term(cross_entropy, fkd.module(name)(student.logits), batch["y"])},
        **{"student": fkd.trainable(Net(6)), name: fkd.trainable(nn.Linear(3, 3))},
    )
    state = train_step(objective, adamw, compile=False).init()
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        export(objective, state, "student", tmp_path / "a" / "b", adapters=[name])
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_whole_or_absent_and_links_are_not_followed(tmp_path, monkeypatch):
    step, state = make()
    real = fkd.loops._checkpoint.export._save

    def fails(module: nn.Module, path: object) -> None:
        real(module, path)
        if "project" in str(path):
            raise KeyboardInterrupt

    monkeypatch.setattr("fkd.loops._checkpoint.export._save", fails)
    with pytest.raises(KeyboardInterrupt):
        export(step.objective, state, "student", tmp_path / "out", adapters=["project"])
    assert list(tmp_path.iterdir()) == []
    export(step.objective, state, "student", tmp_path / "out")
    (tmp_path / "precious").write_text("all of it")
    (tmp_path / "out" / "model.safetensors").unlink()
    (tmp_path / "out" / "model.safetensors").symlink_to(tmp_path / "precious")
    (tmp_path / "out" / "notes").write_text("kept")
    export(step.objective, state, "student", tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "all of it"
    assert (tmp_path / "out" / "notes").read_text() == "kept"
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(Net(6).state_dict())


def test_the_best_state_of_a_run_is_exported_from_its_checkpoint(tmp_path):
    train(tmp_path / "run", epochs=3, dev=batches(2))
    step, _ = make()
    found = fkd.loops.best(tmp_path / "run", higher_is_better=False)
    assert found is not None
    kept = export(step.objective, fkd.loops.restore(step, found), "student", tmp_path / "out")
    for name, value in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(value, kept.state_dict()[name])
