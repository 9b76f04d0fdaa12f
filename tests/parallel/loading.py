"""Models that no process holds whole: each reads its rows from files."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

import fkd
from fkd import ref, student, teacher, term
from fkd._objective.stored import Stored
from fkd.losses import kl
from fkd.parallel import _shards, on_meta
from tests.parallel.cases import adamw, digest


def llama(layers: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=51, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=24, max_position_embeddings=16,
        tie_word_embeddings=layers == 1, attn_implementation="eager",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def written(folder: str) -> None:
    """The student in one file, the teacher in several."""
    torch.manual_seed(0)
    llama(1).save_pretrained(f"{folder}/student")
    llama(2).save_pretrained(f"{folder}/teacher", max_shard_size="8KB")


def read(mesh: DeviceMesh, folder: str, axis: str, empty: str) -> Any:
    """A few steps and the state after them.

    Args:
      empty: how the modules are made: "on_meta", "meta" (torch's device), or "" (whole).
    """
    _shards.SMALLEST = 8
    counts: list[int] = []
    original = Stored.read

    def counted(self: Stored, name: str, rows: slice | None = None) -> Tensor:
        values = original(self, name, rows)
        counts.append(values.untyped_storage().nbytes() // values.element_size())
        return values

    Stored.read = counted
    if empty:
        with on_meta() if empty == "on_meta" else torch.device("meta"):
            small, large = llama(1), llama(2)
        models = {
            "student": fkd.trainable(small, weights=f"{folder}/student"),
            "teacher": fkd.frozen(large, weights=f"{folder}/teacher"),
        }
    else:
        load = transformers.LlamaForCausalLM.from_pretrained
        small = load(f"{folder}/student", attn_implementation="eager")
        large = load(f"{folder}/teacher", attn_implementation="eager")
        models = {"student": fkd.trainable(small.train()), "teacher": fkd.frozen(large)}
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits),
            "slow": term(kl, student.logits, ref("slow").logits),
        },
        **models,
        slow=fkd.ema("student", decay=0.5),
    )
    cut = init_device_mesh("cpu", (mesh.size(),), mesh_dim_names=(axis,))
    step = fkd.loops.train_step(objective, adamw, compile=False, mesh=cut)
    state = step.init(0)
    largest, total = max(counts, default=0), sum(counts)
    ids = torch.randint(51, (5, 7), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        state, _ = step(state, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    names = {n for n, x in state.frozen["teacher"].items() if isinstance(x, DTensor)}
    exported = fkd.loops.export(objective, state)
    return {
        "digest": digest(state),
        "largest": largest,
        "total": total,
        "cut": len(names),
        "exported": float(sum(p.detach().double().sum() for p in exported.parameters())),
    }
