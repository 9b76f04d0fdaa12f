"""Batches that the student writes: on the state's own tensors, and exactly resumed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest
import torch
import transformers as hf
from torch import nn

import fkd
from fkd import batch, call, student, teacher, term
from fkd.loops import export, fit, run, train_step
from fkd.loops.language import (
    Engine,
    Generator,
    Tokens,
    completions,
    engine_generator,
    generator,
    on_policy,
    prompt_batch,
)
from fkd.losses import jsd

from ..training import in_process, same_end, spawn

VOCAB, PROMPT, NEW, END = 40, 5, 6, 2


def llama(seed: int, layers: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, pad_token_id=0)
    sizes |= dict(vocab_size=VOCAB, num_hidden_layers=layers)
    config = hf.LlamaConfig(eos_token_id=END, tie_word_embeddings=True, **sizes)
    model = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5 if p.ndim > 1 else 1)
    return model


def objective_of(small: nn.Module) -> fkd.Objective:
    counts = call(torch.ne, batch.targets, -100)
    return fkd.Objective(
        {"gkd": term(jsd, student.logits, teacher.logits, where=counts)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(llama(9, 2)),
    )


def step_of(objective: fkd.Objective, **options):
    make = lambda params: torch.optim.AdamW(params, lr=1e-2)
    return train_step(objective, make, **{"compile": False, **options})


def data(count: int = 1, rows: int = 3) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)

    def text(n: int) -> Tokens:
        ids = torch.randint(3, VOCAB, (n + 3,), generator=g).tolist()
        return Tokens(ids, [-100] * n + ids[n:])

    return [
        prompt_batch([text(2 + i) for i in range(rows)], prompt=PROMPT, new_tokens=NEW)
        for _ in range(count)
    ]


def prompts() -> dict[str, torch.Tensor]:
    return {n: data()[0][n][:, :PROMPT] for n in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["", "static"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_state_writes_what_the_exported_model_writes(options, precision):
    objective = objective_of(llama(0))
    step = step_of(objective, precision=precision)
    state, _ = step(step.init(), data()[0])
    write = generator(objective, new_tokens=NEW, temperature=0, **options)
    before = {n: x.clone() for n, x in state.trainable["student"].items()}
    batch = write(state, prompts(), 0)
    assert all(torch.equal(x, before[n]) for n, x in state.trainable["student"].items())
    model = export(objective, state, "student")
    if precision == "bf16":
        for p in model.parameters():
            p.data = p.data.bfloat16()
    want = model.generate(**prompts(), max_new_tokens=NEW, do_sample=False)
    said = batch["targets"][:, PROMPT - 1 : -1]
    for row, text in zip(said, want[:, PROMPT:], strict=True):
        kept = row[row != -100]
        assert torch.equal(kept, text[: len(kept)])
        assert len(kept) == NEW or kept[-1] == END
    assert {tuple(x.shape) for x in batch.values()} == {(3, PROMPT + NEW)}


def test_samples_follow_the_seed_and_their_own_probabilities():
    objective = objective_of(llama(0))
    state = step_of(objective).init()
    write = generator(objective, new_tokens=2, samples=400, temperature=0.7, behaviour=True, end=[])
    one = {n: x[:1] for n, x in prompts().items()}
    batch = write(state, one, 5)
    assert torch.equal(batch["input_ids"], write(state, one, 5)["input_ids"])
    assert not torch.equal(batch["input_ids"], write(state, one, 6)["input_ids"])
    assert batch["input_ids"].shape == (400, PROMPT + 2)
    first, log_q = batch["targets"][:, PROMPT - 1], batch["behaviour"][:, PROMPT - 1]
    for token in first.unique():
        p = log_q[first == token]
        assert p.std(unbiased=False) < 1e-5
        share = float((first == token).float().mean())
        assert abs(share - float(p[0].exp())) < 5 * (0.25 / 400) ** 0.5
    assert torch.equal(batch["behaviour"] != 0, batch["targets"] != -100)
    nucleus = generator(objective, new_tokens=2, samples=50, top_p=1e-6, end=[])
    greedy = generator(objective, new_tokens=2, temperature=0, end=[])
    assert torch.equal(
        nucleus(state, one, 0)["input_ids"].unique(dim=0), greedy(state, one, 0)["input_ids"]
    )


def test_nothing_counts_after_the_end():
    said = torch.tensor([[7, END, 9], [END, 1, 1], [7, 7, 7]])
    made = completions(said, prompts(), new_tokens=4, end=[END, 30])
    assert made["attention_mask"][:, PROMPT:].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert made["targets"][:, PROMPT - 1 :].tolist() == [
        [7, END, -100, -100, -100],
        [END, -100, -100, -100, -100],
        [7, 7, 7, 0, -100],
    ]
    lengths = torch.tensor([3, 1, 2])
    made = completions(torch.tensor([[7] * 3] * 3), prompts(), new_tokens=3, lengths=lengths)
    assert made["attention_mask"][:, PROMPT:].sum(-1).tolist() == [3, 1, 2]
    positions = made["position_ids"][0]
    assert positions[made["attention_mask"][0] == 1].tolist() == list(range(5))


@pytest.mark.parametrize("updates", [1, 3])
def test_a_resumed_run_writes_the_same_and_nothing_twice(tmp_path, updates):
    calls: list[int] = []

    def go(steps: int, folder):
        objective = objective_of(llama(0))
        write = generator(objective, new_tokens=NEW)

        def counting(state, given, seed):
            calls.append(state.step)
            return write(state, given, seed)

        step = step_of(objective)
        prepare = on_policy(counting, prompt=PROMPT, share=0.5, updates=updates)
        options = dict(prepare=prepare, progress=False, checkpoint_dir=folder, log_every=1)
        events = list(fit(step, step.init(1), data(3), steps=steps, **options))
        return events

    whole = go(7, tmp_path / "a")[-1].state
    at_once, calls[:] = list(calls), []
    go(4, tmp_path / "b")
    events = go(7, tmp_path / "b")
    for name, x in whole.trainable["student"].items():
        assert torch.equal(events[-1].state.trainable["student"][name], x)
    assert calls == at_once  # and not one more
    assert len(at_once) == len({*at_once}) < 7
    logged = [e.values for e in events if e.kind == "log"]
    assert all(v["prepare_s"] > 0 and v["update_s"] > 0 for v in logged)
    assert all(v["prepare_tokens_per_s"] > 0 for v in logged)


def test_what_a_user_says_between_two_answers_does_not_count():
    ids = [5, 6, 7, 8, 9, 10]
    row = Tokens(ids, [-100, -100, 7, -100, -100, 10])
    made = prompt_batch([row, Tokens([3, 4], [-100, 4])], prompt=3, new_tokens=5)
    assert made["input_ids"].tolist() == [[0, 5, 6, 7, 8, 9, 10, 0], [0, 0, 3, 4, 0, 0, 0, 0]]
    counts = [[7, -100, -100, 10, -100], [4, -100, -100, -100, -100]]
    assert made["targets"][:, 2:-1].tolist() == counts
    assert (made["targets"][:, :2] == -100).all() and (made["targets"][:, -1] == -100).all()


def test_a_share_of_nothing_is_the_data():
    def never(*_):
        raise AssertionError

    step = step_of(objective_of(llama(0)))
    plain = run(step, step.init(), data(2), epochs=2, progress=False)
    prepare = on_policy(never, prompt=PROMPT, share=0.0)
    mixed = run(step, step.init(), data(2), epochs=2, progress=False, prepare=prepare)
    for name, x in plain.state.trainable["student"].items():
        assert torch.equal(mixed.state.trainable["student"][name], x)


class Echo:
    """An engine that repeats the prompt, and remembers what it was given."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.asked: list[list[int]] = []

    def load(self, tensors, version: int) -> None:
        self.versions.append(version)
        self.weights = {n: x.clone() for n, x in tensors.items()}

    def generate(self, prompts, seed: int):
        self.asked = [list(p) for p in prompts]
        return [[*p, END] for p in prompts]


def test_another_engine_stands_behind_the_same_interface():
    engine = Echo()
    assert isinstance(engine, Engine)
    write = engine_generator(engine, new_tokens=NEW, samples=2, end=END, every=2)
    objective = objective_of(llama(0))
    step = step_of(objective)
    prepare = on_policy(write, prompt=PROMPT, samples=2)
    result = run(step, step.init(), data(4), epochs=1, prepare=prepare, progress=False)
    assert engine.versions == [0, 2]
    names = {n for n, _ in llama(0).named_parameters()}
    assert names <= engine.weights.keys()
    assert result.state.step == 4 and len(engine.asked) == 6
    made = write(result.state, prompts(), 0)
    assert engine.versions[-1] == 4
    norm = result.state.trainable["student"]["model.norm.weight"]
    assert torch.equal(engine.weights["model.norm.weight"], norm)
    for row, prompt in zip(made["targets"], engine.asked, strict=True):
        assert row[row != -100].tolist() == [*prompt, END][:NEW]


def test_what_does_not_fit_is_refused():
    objective = objective_of(llama(0))
    for wrong in ({"new_tokens": 0}, {"top_p": 0}, {"temperature": -1}, {"samples": 0}):
        with pytest.raises(ValueError, match="are expected"):
            generator(objective, **{"new_tokens": 1, **wrong})
    with pytest.raises(ValueError, match="no model 'pupil'"):
        generator(objective, "pupil", new_tokens=1)
    terms = {"x": term(jsd, student.logits, student.logits)}
    plain = fkd.Objective(terms, student=fkd.trainable(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="has no generate"):
        generator(plain, new_tokens=1)
    with pytest.raises(ValueError, match="share=2"):
        on_policy(lambda *_: {}, prompt=1, share=2)
    with pytest.raises(ValueError, match="text 0 has no token before"):
        prompt_batch([Tokens([1], [1])], prompt=2, new_tokens=2)
    with pytest.raises(ValueError, match="0 texts for 3 prompts"):

        class Silent(Echo):
            def generate(self, prompts, seed):
                return []

        engine_generator(Silent(), new_tokens=2)(step_of(objective).init(), prompts(), 0)


class Slow(Echo):
    """An engine that says what depends on its weights and the seed, in some other thread."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def generate(self, prompts, seed: int):
        self.threads.add(threading.current_thread().name)
        time.sleep(0.02)
        drawn = int(self.weights["model.norm.weight"].sum() * 1e4) + seed % 1000
        return [
            [3 + (drawn + i + k) % (VOCAB - 3) for k in range(NEW)] for i, _ in enumerate(prompts)
        ]


def test_an_engine_writes_while_the_student_trains():
    """The texts of a step are those of the student one step before; the first are the data's."""
    engine, seen = Slow(), []
    prepare = on_policy(engine_generator(engine, new_tokens=NEW, end=END), prompt=PROMPT, ahead=1)

    def watched(state, batch):
        made = prepare(state, batch)
        seen.append(made["input_ids"])
        return made

    step, texts = step_of(objective_of(llama(0))), data(4)
    run(step, step.init(), texts, epochs=1, prepare=watched, progress=False)
    assert engine.versions == [0, 1, 2, 3]
    assert torch.equal(seen[0], texts[0]["input_ids"])
    assert not any(torch.equal(x, y["input_ids"]) for x, y in zip(seen[1:], texts[1:], strict=True))
    assert len({*engine.threads}) == 1 and threading.current_thread().name not in engine.threads


@pytest.mark.parametrize("ahead", [1, 2])
def test_texts_under_way_are_in_the_checkpoint(tmp_path, ahead):
    def go(steps: int, folder):
        step = step_of(objective_of(llama(0)))
        write = engine_generator(Slow(), new_tokens=NEW, end=END)
        prepare = on_policy(write, prompt=PROMPT, share=0.7, ahead=ahead)
        options = dict(prepare=prepare, progress=False, checkpoint_dir=folder, save_every=1)
        return run(step, step.init(1), data(3), steps=steps, **options).state

    whole = go(7, tmp_path / "a")
    for steps in (1, 2, 4):
        go(steps, tmp_path / "b")
    resumed = go(7, tmp_path / "b")
    for name, x in whole.trainable["student"].items():
        assert torch.equal(resumed.trainable["student"][name], x)


def test_who_cannot_write_ahead_is_told_so():
    write = generator(objective_of(llama(0)), new_tokens=1)
    with pytest.raises(ValueError, match=r"no start\(state, prompts, seed\)"):
        on_policy(write, prompt=1, ahead=1)
    engine = engine_generator(Echo(), new_tokens=1)
    with pytest.raises(ValueError, match="ahead=1 with updates=2"):
        on_policy(engine, prompt=1, ahead=1, updates=2)


def killed(folder, way: str, pause: float, steps: int = 16) -> None:
    """A run on the student's own text, slow enough to be killed anywhere."""
    step = step_of(objective_of(llama(0)))
    if way == "ahead":
        write: Generator = engine_generator(Slow(), new_tokens=NEW, end=END)
        prepare = on_policy(write, prompt=PROMPT, share=0.8, ahead=1)
    else:
        write = generator(step.objective, new_tokens=NEW)
        prepare = on_policy(write, prompt=PROMPT, share=0.8, updates=2)
    options = dict(prepare=prepare, progress=False, checkpoint_dir=folder, save_every=1)
    run(
        step, step.init(1), data(3), steps=steps, callbacks=[lambda e: time.sleep(pause)], **options
    )  # fmt: skip


@pytest.mark.parametrize("way", ["updates", "ahead"])
def test_a_killed_run_ends_as_one_that_nobody_killed(tmp_path, way):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert in_process(killed, whole, way, 0.0) == 0
    draw = random.Random(way)
    for _ in range(4):
        process = spawn(killed, broken, way, 0.05)
        process.join(draw.uniform(0.1, 1.5))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    assert in_process(killed, broken, way, 0.0) == 0
    assert same_end(whole, broken)


def test_a_model_s_own_settings_change_no_distribution():
    small = llama(0)
    small.generation_config.update(
        repetition_penalty=50.0, suppress_tokens=list(range(3, VOCAB - 3)), top_k=1, min_p=0.9
    )
    with torch.no_grad():
        small.model.norm.weight.zero_()  # every token is as likely
    objective = objective_of(small)
    state = step_of(objective).init(0)
    said = generator(objective, new_tokens=NEW, samples=60, end=())(state, prompts(), 0)["targets"]
    counts = torch.bincount(said[said != -100], minlength=VOCAB)
    assert int(counts.sum()) == 180 * NEW and int((counts > 5).sum()) == VOCAB
    said = generator(objective, new_tokens=NEW, end=(), suppress_tokens=[7])
    assert not (said(state, prompts(), 0)["targets"] == 7).any()


def test_special_tokens_that_a_small_model_does_not_have_are_left_out():
    sizes = dict(n_embd=16, n_layer=1, n_head=2, n_positions=16)
    small = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCAB, **sizes))  # its end is 50256
    objective = fkd.Objective(
        {"kd": term(jsd, student.logits, teacher.logits, where=batch.targets != -100)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(llama(9)),
    )
    step = step_of(objective)
    state = step.init(0)
    texts = generator(objective, new_tokens=NEW)(state, prompts(), 0)
    assert int(texts["input_ids"].max()) < VOCAB and int((texts["targets"] >= 0).sum()) == 3 * NEW
    step(state, texts)


@pytest.mark.parametrize("samples", [1, 2])
def test_an_encoder_decoder_writes_labels(samples):
    sizes = dict(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    config = hf.T5Config(vocab_size=VOCAB, pad_token_id=0, eos_token_id=END, **sizes)
    torch.manual_seed(0)
    small, big = (hf.T5ForConditionalGeneration(config) for _ in range(2))
    objective = fkd.Objective(
        {"kd": term(jsd, student.logits, teacher.logits, where=batch.labels != -100)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )
    step = step_of(objective)
    state = step.init(0)
    options = dict(temperature=0.0) if samples == 1 else {}
    write = generator(objective, new_tokens=NEW, samples=samples, behaviour=True, **options)
    ids = torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]])
    from_data = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    from_data |= {"labels": torch.tensor([[3, 4, END, -100, -100, -100]] * 2)}
    mixed = on_policy(write, prompt=4, samples=samples)(state, from_data)
    assert mixed["labels"].shape == (2 * samples, NEW) and mixed["input_ids"].shape[1] == 4
    if samples == 1:
        made = export(objective, state, "student").eval()
        texts = made.generate(ids, attention_mask=from_data["attention_mask"], max_new_tokens=NEW)
        for row, labels in zip(texts[:, 1:].tolist(), mixed["labels"].tolist(), strict=True):
            kept = [i for i in labels if i != -100]
            assert row[: len(kept)] == kept
    log_q = small.eval()(
        mixed["input_ids"], attention_mask=mixed["attention_mask"], labels=mixed["labels"]
    ).logits.log_softmax(-1)
    kept = mixed["labels"] >= 0
    chosen = log_q.gather(-1, mixed["labels"].clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(mixed["behaviour"][kept], chosen[kept].detach())
    step(state, mixed)
