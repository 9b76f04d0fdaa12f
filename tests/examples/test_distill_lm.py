"""Distilling a language model from the command line: every way of supervising it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

import fkd

from ..loops.text.tokenizers import CHATML, TEXT, byte_level, sentence_piece
from ..loops.training import in_process, newest, same_end, spawn

pytestmark = pytest.mark.filterwarnings("ignore")

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


language = loaded("language")
script = loaded("distill_lm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher, and text."""
    root = tmp_path_factory.mktemp("lm")
    tokenizer = byte_level(330)
    tokenizer.save_pretrained(root / "teacher")
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=330)
    config = hf.LlamaConfig(num_hidden_layers=3, pad_token_id=0, eos_token_id=2, **sizes)
    hf.LlamaForCausalLM(config).save_pretrained(root / "teacher")
    (root / "train.txt").write_text("\n".join(TEXT * 4))
    (root / "dev.txt").write_text("\n".join(TEXT))
    return root


def distil(folder: Path, out: str, *flags: str, steps: int = 2, **files: str) -> dict[str, float]:
    small = () if "--student" in flags else ("--layers", "2")
    return script.main(
        [
            *("--teacher", str(folder / "teacher"), *small),
            *("--train", str(folder / files.get("train", "train.txt"))),
            *("--dev", str(folder / "dev.txt"), "--out", str(folder / out)),
            *("--length", "32", "--batch-size", "4", "--no-compile"),
            *("--keep", "8", "--steps", str(steps), *flags),
        ]
    )


def texts_of(folder: Path) -> list[str]:
    """The texts of TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tag = "samples/text_summary"
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)]


@pytest.mark.parametrize("way", [w for w in script.WAYS if w != "served"])
def test_every_way_trains_a_model_that_loads(folder, way):
    values = distil(folder, way, "--supervision", way)
    assert values.keys() >= {"perplexity", "teacher_perplexity", "agreement", "loss/kl"}
    loaded = hf.AutoModelForCausalLM.from_pretrained(folder / way / "student")
    assert loaded.config.num_hidden_layers == 2
    text = hf.AutoTokenizer.from_pretrained(folder / way / "student")("The student")
    assert torch.isfinite(loaded(torch.tensor([text["input_ids"]])).logits).all()
    assert json.loads((folder / way / "report.json").read_text()) == values
    texts = texts_of(folder / way / "log")
    assert len(texts) == 2 and all("-----" in text for text in texts)  # two prompts, two steps


def test_cached_is_live_and_a_run_goes_on(folder):
    live = distil(folder, "a", "--supervision", "live", steps=3)
    cached = distil(folder, "b", "--supervision", "cached", steps=3)
    assert cached == pytest.approx(live, rel=1e-5)
    distil(folder, "c", "--supervision", "cached", steps=3)
    again = distil(folder, "c", "--supervision", "cached", steps=3)  # nothing is left to do
    assert again == cached


def test_conversations_and_completions_are_read(folder):
    chat = [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]},
        {"prompt": "Who reads? ", "completion": "The student."},
        {"text": " ".join(TEXT)},
    ]
    tokenizer = byte_level(330)
    lines = "\n".join(map(json.dumps, chat))
    (folder / "chat.jsonl").write_text(lines)
    tokenizer.chat_template, before = CHATML, tokenizer.chat_template
    try:
        rows = language.rows_of([str(folder / "chat.jsonl")], tokenizer, 32)
    finally:
        tokenizer.chat_template = before
    said = [tokenizer.decode([i for i in row.labels if i != -100]) for row in rows[:2]]
    assert said == ["I.<|im_end|>", "The student.</s>"]
    assert len(rows) > 4 and all(len(row.ids) <= 32 for row in rows)
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{')
    with pytest.raises(SystemExit, match=r"bad\.jsonl, line 2"):
        list(language.records([str(folder / "bad.jsonl")]))


def test_a_served_teacher_is_the_live_one(folder):
    flags = ["--teacher", str(folder / "teacher"), "--layers", "2", "--out", "x"]
    args = script.arguments().parse_args([*flags, "--supervision", "served"])
    big = script.load(hf.AutoModelForCausalLM, str(folder / "teacher")).eval()
    small = script.fewer_layers(big, 2)
    objective = script.objective_of(args, small, big, 330)
    with fkd.sources.serve(objective) as server:
        served = distil(folder, "d", "--supervision", "served", "--url", server.url)
    live = distil(folder, "e", "--supervision", "live")
    assert served == pytest.approx(live, rel=1e-5)


def test_a_student_of_its_own_with_more_rows_than_its_tokenizer_has_entries(folder):
    torch.manual_seed(1)
    sizes = dict(hidden_size=8, num_attention_heads=2, intermediate_size=8, vocab_size=384)
    config = hf.LlamaConfig(num_hidden_layers=1, pad_token_id=0, eos_token_id=2, **sizes)
    hf.LlamaForCausalLM(config).save_pretrained(folder / "own")
    byte_level(330).save_pretrained(folder / "own")
    flags = ("--student", str(folder / "own"), "--supervision")
    live, cached = (distil(folder, f"own {way}", *flags, way) for way in ("live", "cached"))
    assert cached == pytest.approx(live, rel=1e-5)
    made = hf.AutoModelForCausalLM.from_pretrained(folder / "own live" / "student")
    assert made.config.vocab_size == 384
    sentence_piece().save_pretrained(folder / "own")
    with pytest.raises(fkd.ObjectiveError, match="tokenizers"):
        distil(folder, "other", *flags, "live")


def killed(folder: Path, out: str, *flags: str, saved: int) -> None:
    """Kill a run, with no chance to clean up, once it has saved so many steps."""
    process, saves = spawn(distil, folder, out, *flags, steps=8), folder / out / "checkpoints"
    while process.exitcode is None:
        process.join(0.01)
        if any(int(p.name[-8:]) >= saved for p in saves.glob("step-*")):
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("way", ["live", "on-policy"])
def test_a_killed_run_ends_as_one_that_nobody_killed(folder, way):
    flags = ("--supervision", way)
    assert in_process(distil, folder, f"{way} whole", *flags, steps=8) == 0
    killed(folder, f"{way} broken", *flags, saved=4)
    assert in_process(distil, folder, f"{way} broken", *flags, steps=8) == 0
    whole, broken = (folder / f"{way} {name}" for name in ("whole", "broken"))
    assert same_end(whole / "checkpoints", broken / "checkpoints")
    assert newest(whole / "checkpoints").name == "step-00000008"
    for name in ("student/model.safetensors", "report.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_help_is_short():
    assert len(script.arguments().format_help().splitlines()) < 60
