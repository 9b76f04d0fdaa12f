"""BERT, 12 layers to 3: a step of fkd beside the packages and loops that people use.

    python benchmarks/bert.py --hidden 128 --shape 16x64
    python benchmarks/bert.py --hidden 384 --shape 8x256 --case upper-unused
    python benchmarks/bert.py --device cuda --hidden 768 --shape 8x512 --case attention --bf16

Cases: `all-layers` (hidden states of the embedding and of layers 4, 8, 12), `upper-unused`
(of the embedding and of layers 1, 2, 4), `attention` and `lower-attention` (the same two, and the
attention probabilities of two of the layers). All variants have the same losses, masks and
weights, AdamW with its fused kernel, no dropout. Losses and gradients are compared before
anything is timed.

The peers are the packages KnowledgeDistillation and TextBrewer (`pip install fkd[peers]`): the
loss model of the one and `train_on_batch` of the other; the few lines of the loop around them
(backward, step, zero_grad) are those of the packages, without evaluation, logging, checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _measure import COLUMNS, Run, arguments, compare, gemm_rate, needed_flops, same, table, write
from _steps import Loss, fkd_gradients, fkd_step, peer_gradients, peer_step
from torch import Tensor, nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import attention_mse, mse

LAYERS = {
    "all-layers": [(0, 0), (1, 4), (2, 8), (3, 12)],
    "upper-unused": [(0, 0), (1, 1), (2, 2), (3, 4)],
    "attention": [(0, 0), (1, 4), (2, 8), (3, 12)],
    "lower-attention": [(0, 0), (1, 1), (2, 2), (3, 4)],
}
MAPS = {
    "all-layers": [],
    "upper-unused": [],
    "attention": [(0, 3), (2, 11)],
    "lower-attention": [(0, 0), (2, 3)],
}


class Setting:
    """Models, batch and pairs of layers of one run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.layers, self.maps = LAYERS[options.case], MAPS[options.case]
        implementation = "eager" if self.maps else "sdpa"
        self.student = bert(options, 3, "sdpa")
        self.teacher = bert(options, 12, "sdpa").eval()
        # What peers run: every layer on the eager path where a map is asked for.
        self.peers = bert(options, 3, implementation), bert(options, 12, implementation).eval()
        for peer, model in zip(self.peers, (self.student, self.teacher), strict=True):
            peer.load_state_dict(model.state_dict())
        self.batch = text(options)

    def outputs(self, model: nn.Module) -> Any:
        with torch.autocast(self.options.device, torch.bfloat16, enabled=self.options.bf16):
            return model(**self.batch, output_hidden_states=True, output_attentions=bool(self.maps))


def bert(options: argparse.Namespace, layers: int, implementation: str) -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(layers)
    config = BertConfig(
        hidden_size=options.hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(options.hidden // 64, 2),
        intermediate_size=4 * options.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=implementation,
    )
    return BertModel(config, add_pooling_layer=False).to(options.device)


def text(options: argparse.Namespace) -> dict[str, Tensor]:
    examples, length = map(int, options.shape.split("x"))
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(length // 2, length + 1, (examples,), generator=g)
    found = {
        "input_ids": torch.randint(5, 30000, (examples, length), generator=g),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
    }
    return {k: v.to(options.device) for k, v in found.items()}


# fkd


def objective(setting: Setting) -> fkd.Objective:
    mask = batch.attention_mask
    hidden = {
        f"{s}<-{t}": term(mse, student.hidden_states[s], teacher.hidden_states[t], where=mask)
        for s, t in setting.layers
    }
    maps = {
        f"{s}<-{t}": term(
            attention_mse, student.attention(s), teacher.attention(t), normalize="pair", where=mask
        )
        for s, t in setting.maps
    }
    return fkd.Objective(
        {"hidden": hidden, "attention": maps} if maps else {"hidden": hidden},
        student=fkd.trainable(setting.student),
        teacher=fkd.frozen(setting.teacher),
    )


# Peers: `(student, teacher) -> loss`


def plain_loss(setting: Setting) -> Loss:
    mask = setting.batch["attention_mask"].float()
    count, pairs = mask.sum(), mask[:, :, None] * mask[:, None, :]

    def loss(small: nn.Module, big: nn.Module) -> Tensor:
        with torch.no_grad():
            t = setting.outputs(big)
        s = setting.outputs(small)
        total = torch.zeros((), device=mask.device)
        for i, j in setting.layers:
            error = (s.hidden_states[i].float() - t.hidden_states[j].float()).square().mean(-1)
            total = total + (error * mask).sum() / count
        for i, j in setting.maps:
            error = (s.attentions[i].float() - t.attentions[j].float()).square().mean(1)
            total = total + (error * pairs).sum() / pairs.sum()
        return total

    return loss


def knowledge_distillation_loss(setting: Setting) -> Loss:
    from knowledge_distillation import MultiLayerBasedDistillationLoss

    def pair(kind: str, s: int, t: int, loss: str) -> dict[str, Any]:
        return {
            "teacher_layer_name": f"{kind}{t}",
            "teacher_layer_output_name": kind,
            "student_layer_name": f"{kind}{s}",
            "student_layer_output_name": kind,
            "loss": {"loss_function": loss, "args": {}},
            "weight": 1.0,
        }

    def adaptor(output: Any) -> dict[str, dict[str, Tensor]]:
        found = {f"hidden{i}": {"hidden": x} for i, x in enumerate(output.hidden_states)}
        maps = output.attentions if setting.maps else ()
        return {**found, **{f"map{i}": {"map": x} for i, x in enumerate(maps)}}

    config = [pair("hidden", s, t, "mse_with_mask") for s, t in setting.layers]
    config += [pair("map", s, t, "attention_mse_with_mask") for s, t in setting.maps]
    model = MultiLayerBasedDistillationLoss(config, adaptor, adaptor)

    def loss(small: nn.Module, big: nn.Module) -> Tensor:
        with torch.no_grad():
            t = setting.outputs(big)
        return model(t, setting.outputs(small), setting.batch, setting.batch)

    return loss


def textbrewer_loss(setting: Setting) -> Loss:
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    def match(feature: str, s: int, t: int, loss: str) -> dict[str, Any]:
        return {"layer_T": t, "layer_S": s, "feature": feature, "loss": loss, "weight": 1}

    def adaptor(given: Any, output: Any) -> dict[str, Any]:
        found = {"hidden": output["hidden_states"], "inputs_mask": given["attention_mask"]}
        return {**found, "attention": output["attentions"]} if setting.maps else found

    matches = [match("hidden", s, t, "hidden_mse") for s, t in setting.layers]
    matches += [match("attention", s, t, "attention_mse") for s, t in setting.maps]
    made: list[Any] = []

    def loss(small: nn.Module, big: nn.Module) -> Tensor:
        if not made:
            made.append(
                GeneralDistiller(
                    TrainingConfig(device=setting.options.device, log_dir=None, output_dir="."),
                    DistillationConfig(intermediate_matches=matches),
                    big,
                    small,
                    adaptor,
                    adaptor,
                )
            )
        options = {"output_hidden_states": True, "output_attentions": bool(setting.maps)}
        with torch.autocast(setting.options.device, torch.bfloat16, enabled=setting.options.bf16):
            total, _ = made[0].train_on_batch(setting.batch, options)
        return total

    return loss


PEERS: dict[str, Callable[[Setting], Loss]] = {
    "KnowledgeDistillation": knowledge_distillation_loss,
    "TextBrewer": textbrewer_loss,
    "plain eager loop": plain_loss,
}


def agreement(setting: Setting) -> list[str]:
    """Losses and gradients of every peer against fkd's."""
    bf16 = setting.options.bf16
    expected, notes = fkd_gradients(objective(setting), setting.batch, bf16=bf16), []
    tolerance = 3e-2 if bf16 else 1e-4
    for name, peer in PEERS.items():
        try:
            found = peer_gradients(peer(setting), setting.peers)
        except ImportError as error:
            notes.append(f"{name}: not installed: {error}")
            continue
        expected = {k: v for k, v in expected.items() if k in found or bool(v.any())}
        notes.append(same(name, found, expected, tolerance))
    return notes


def main() -> None:
    parser = arguments(__doc__ or "", hidden=128)
    parser.add_argument("--shape", default="16x64", help="examples x tokens")
    parser.add_argument("--case", choices=list(LAYERS), default="all-layers")
    parser.add_argument("--mode", help="of torch.compile, for fkd's step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = Setting(options)
    notes = agreement(setting)
    print("\n".join(notes))

    def step(compile: Any) -> Run:
        return fkd_step(objective(setting), setting.batch, compile=compile, bf16=options.bf16)

    make: dict[str, Callable[[], Run]] = {
        "fkd, compiled": lambda: step({"mode": options.mode} if options.mode else True),
        "fkd, eager": lambda: step(False),
        "plain loop, models compiled": lambda: peer_step(
            plain_loss(setting), setting.peers, compiled=True
        ),
    }
    for name, peer in PEERS.items():
        make[name] = lambda peer=peer: peer_step(peer(setting), setting.peers)
    flops = needed_flops(step)
    rows = compare(make, options, baseline="fkd, compiled")
    tokens = setting.batch["input_ids"].numel()
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    rate = gemm_rate(options, (tokens, 4 * options.hidden, options.hidden), dtype)
    for row in rows.values():
        if "median_s" in row:
            row["tokens_per_s"] = tokens / row["median_s"]
            row["share_of_floor"] = flops / rate / row["median_s"]
    print(f"needed: {flops / 1e9:.2f} GFLOP; matrix products: {rate / 1e9:.0f} GFLOP/s\n")
    print(table(rows, {**COLUMNS, "tokens_per_s": ".0f", "share_of_floor": ".2f"}))
    notes.append(f"needed: {flops} FLOP a step; measured rate of matrix products: {rate:.3e}/s")
    name = f"bert_{options.hidden}_{options.shape}_{options.case}_{options.device}"
    write(name, options, rows, notes)


if __name__ == "__main__":
    main()
