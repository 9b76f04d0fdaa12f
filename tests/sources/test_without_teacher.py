"""A teacher that exists as a source only: its head is kept, or is not needed; memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, frozen, ref, student, teacher, term, trainable
from fkd.losses import head, head_divergence, kl, mse
from fkd.sources import DamagedSourceError, SourceError, bind, cache, exact, sampled, scaled, top_k
from fkd.sources import open as open_cache
from tests.interop.tiny import tiny

from .test_bind import assert_same, value_and_gradient

LM = "lm_head.weight"
WHERE = batch.attention_mask


def kd(**more):
    made = term(head_divergence, student.hidden_states[-1], student.param(LM),
                teacher.hidden_states[-1], teacher.param(LM), divergence=head.kl(),
                where=WHERE)  # fmt: skip
    return {"kd": made, **more}


def models(count=2):
    torch.manual_seed(0)
    return [tiny("llama") for _ in range(count)]


def goal(terms=None):
    small, big = models()
    return fkd.Objective(terms or kd(), student=trainable(small), teacher=frozen(big))


def without(terms=None):
    return fkd.Objective(terms or kd(), student=trainable(models(1)[0]))


def texts(count=6, length=5):
    draw = torch.Generator().manual_seed(2)
    mask = torch.ones(count, length, dtype=torch.long)
    mask[1::2, 3:] = 0
    return {"input_ids": torch.randint(1, 30, (count, length), generator=draw),
            "attention_mask": mask}  # fmt: skip


def rows_of(made, indices):
    return {name: x[indices] for name, x in made.items()}


def test_the_head_of_the_teacher_is_kept_beside_its_hidden_states(tmp_path):
    made = texts()
    cache(goal(), [made], tmp_path, progress=False)
    kept = open_cache(tmp_path)
    assert kept.header.parameters.names == [["teacher", LM]]
    cheap = bind(without(), kept)
    assert not cheap.problems and sorted(cheap.models) == ["student", "teacher"]
    held = cheap.models["teacher"].module
    assert [name for name, _ in held.named_parameters()] == [LM]
    [attached] = kept.attach([made])
    assert_same(goal(), cheap, made, attached)
    assert cheap.program.runs == ("student",)
    report = fkd.check(cheap, attached)
    assert "cached in" in str(report)


@pytest.mark.parametrize("of", [top_k(4, of=teacher.logits), sampled(6, of=teacher.logits)])
def test_behind_the_head_nothing_of_the_teacher_is_held(tmp_path, of):
    made, hidden = texts(), teacher.hidden_states[-1]
    kept = cache(goal(), [made], tmp_path, keep={hidden: of}, progress=False)
    assert kept.header.parameters.names == [] and not list(tmp_path.glob("param*"))
    [attached] = kept.attach([made])
    ends = []
    for one in (goal(), without()):
        cheap = bind(one, kept)
        assert list(cheap.models) == ["student"]
        ends.append(value_and_gradient(cheap, attached)[0])
    assert torch.equal(*ends) and ends[0] != 0
    bind(goal(), kept, compare=made)


def test_other_terms_keep_what_they_read_of_the_head(tmp_path):
    made = texts()
    more = {"weights": term(mse, student.param(LM), teacher.param(LM))}
    kept = cache(goal(kd(**more)), [made], tmp_path, progress=False,
                 keep={teacher.hidden_states[-1]: top_k(4, of=teacher.logits)})  # fmt: skip
    assert kept.header.parameters.names == [["teacher", LM]]
    cheap = bind(without(kd(**more)), kept)
    [attached] = kept.attach([made])
    loss, aux = cheap(cheap.init(), attached)
    assert loss.isfinite() and sorted(aux.terms) == ["kd", "weights"]


def test_several_teachers_keep_their_heads(tmp_path):
    def terms(two):
        return {
            name: term(head_divergence, student.hidden_states[-1], student.param(LM),
                       one.hidden_states[-1], one.param(LM), divergence=head.kl(), where=WHERE)
            for name, one in two.items()
        }  # fmt: skip

    two = terms({"a": ref("first"), "b": ref("second")})
    small, one, other = models(3)
    whole = fkd.Objective(two, student=trainable(small), first=frozen(one), second=frozen(other))
    keep = {ref("first").hidden_states[-1]: exact(torch.bfloat16),
            ref("second").hidden_states[-1]: scaled()}  # fmt: skip
    kept = cache(whole, [texts()], tmp_path, keep=keep, progress=False)
    cheap = bind(without(two), kept)
    [attached] = kept.attach([texts()])
    expected, got = (g(g.init(), x)[0] for g, x in ((whole, texts()), (cheap, attached)))
    torch.testing.assert_close(got, expected, rtol=0.05, atol=1e-4)
    assert sorted(cheap.models) == ["first", "second", "student"]


def test_a_parameter_that_was_not_kept_is_an_error_before_any_step(tmp_path):
    kept = cache(goal(), [texts()], tmp_path, progress=False)
    other = term(mse, student.param("model.norm.weight"), teacher.param("model.norm.weight"))
    with pytest.raises(SourceError, match=r"model\.norm\.weight.*lm_head\.weight.*Make it again"):
        bind(without(kd(other=other)), kept)
    assert sorted(bind(goal(kd(other=other)), kept).models) == ["student", "teacher"]


def test_a_damaged_head_is_an_error_and_is_made_again(tmp_path):
    kept = cache(goal(), [texts()], tmp_path, progress=False)
    path = tmp_path / "parameters.safetensors"
    raw = path.read_bytes()
    for at in range(0, len(raw), 97):
        damaged = bytearray(raw)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(DamagedSourceError, match=r"parameters\.safetensors is damaged"):
            bind(without(), kept)
    with pytest.raises(DamagedSourceError, match=r"parameters\.safetensors"):
        kept.verify()
    path.unlink()
    with pytest.raises(DamagedSourceError, match="missing"):
        bind(without(), kept)
    cache(goal(), [texts()], tmp_path, progress=False).verify()
    assert path.read_bytes() == raw


PROGRAM = """
import sys
import torch
import fkd
from tests.sources.test_without_teacher import large_goal, large_loader, peak

goal = large_goal()
fkd.loops.run(step := fkd.loops.train_step(fkd.Objective({"norm": fkd.term(
    fkd.losses.mse, fkd.student.logits, fkd.batch.y)}, **goal.models),
    lambda p: torch.optim.SGD(p, lr=0.1), compile=False), step.init(), large_loader(),
    epochs=1, progress=False)
before = peak()
kept = fkd.sources.open(sys.argv[1])
cheap = fkd.sources.bind(goal, kept)
step = fkd.loops.train_step(cheap, lambda p: torch.optim.SGD(p, lr=0.1), compile=False)
fkd.loops.run(step, step.init(), kept.attach(large_loader()), epochs=2, progress=False)
print(peak() - before)
"""
UNITS = 500_000


def large_goal(**models):
    torch.manual_seed(0)
    terms = {"kd": term(kl, student.logits, teacher.logits)}
    return fkd.Objective(terms, student=trainable(nn.Linear(64, 8)), **models)


def large_loader():
    draw = torch.Generator().manual_seed(1)
    return [{"input": torch.randn(4, 64, generator=draw), "y": torch.zeros(4, 8)} for _ in "six"]


def peak():
    """The most memory that this process has had, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say it")
def test_a_process_that_trains_from_a_cache_has_no_teacher_in_its_memory(tmp_path):
    big = nn.Sequential(nn.Linear(64, UNITS), nn.Linear(UNITS, 8))
    size = 4 * 72 * UNITS / 2**20  # 137 MiB
    cache(large_goal(teacher=frozen(big)), large_loader(), tmp_path, progress=False)
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True,
                         text=True, check=True, cwd=Path(fkd.__file__).parents[1])  # fmt: skip
    assert float(run.stdout.splitlines()[-1]) < size / 3
