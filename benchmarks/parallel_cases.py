"""Models and objectives for `parallel_matrix.py`: what users compose, small."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fkd
from fkd import batch, call, ref, student, teacher, term
from fkd.loops import next_tokens, pack, take
from fkd.losses import (
    attention_mse,
    attention_transfer,
    crd,
    crd_init,
    cross_entropy,
    dino,
    dino_init,
    dist,
    head,
    head_divergence,
    infonce,
    jsd,
    kl,
    mse,
    queue_init,
    queue_kl,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
    vid,
)

FEATURES, CLASSES, WORDS = 6, 5, 50


@dataclass
class Case:
    """An objective and its batches.

    Attributes:
      objective, batches: make them.
      options: of `train_step`.
      tolerance: of every difference.
      without: the ways in which it is not run: an axis, "graph".
    """

    objective: Callable[[], fkd.Objective]
    batches: Callable[[], list[Any]]
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    tolerance: float = 2e-5
    without: tuple[str, ...] = ()


def vectors(*sizes: int, first_counts: bool = True) -> list[dict[str, Tensor]]:
    """Batches of vectors with a mask and labels, of which some do not count."""
    g = torch.Generator().manual_seed(1)
    drawn: list[dict[str, Tensor]] = []
    for size in sizes:
        ok = torch.rand(size, generator=g) > 0.4
        ok[-1] = True
        y = torch.randint(CLASSES, (size,), generator=g)
        y[: size // 2] = -100 if not first_counts else y[: size // 2]
        ok[: size // 2] &= first_counts
        x = torch.randn(size, FEATURES, generator=g)
        drawn.append({"x": x, "ok": ok, "y": y, "w": torch.rand(size, generator=g)})
    return drawn


def images(*sizes: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(2)
    return [
        {"image": torch.randn(n, 3, 8, 8, generator=g), "y": torch.randint(CLASSES, (n,))}
        for n in sizes
    ]


def texts(*sizes: int, length: int = 9, poison: bool = False) -> list[dict[str, Tensor]]:
    """Padded text, of which the first half of the rows is nearly empty."""
    g = torch.Generator().manual_seed(3)
    drawn: list[dict[str, Tensor]] = []
    for size in sizes:
        lengths = torch.randint(2, length + 1, (size,), generator=g)
        lengths[: size // 2] = 2
        mask = (torch.arange(length) < lengths[:, None]).long()
        ids = torch.randint(WORDS, (size, length), generator=g)
        labels = torch.where(mask.bool(), ids, -100)
        labels[:, :2] = -100  # a prompt: the first half of the rows has nothing that counts
        one = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if poison:
            noise = torch.randn(size, length, generator=g)
            one["score"] = torch.where(mask.bool(), noise, torch.nan)
        drawn.append(one)
    return drawn


class Net(nn.Module):
    def __init__(self, width: int, *, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width, bias=norm is None)
        self.norm = norm if norm is not None else nn.Identity()
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.norm(self.first(x)))
        return {"hidden": hidden, "logits": self.head(hidden)}


class Conv(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False, groups=2),
            nn.BatchNorm2d(width, momentum=None),
            nn.SiLU(),
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        first = self.stem(image)
        second = self.body(first)
        pooled = second.mean((2, 3))
        return {"map": first, "last": second, "hidden": pooled, "logits": self.head(pooled)}


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.gru(self.words(input_ids))[0].mean(1))


class Parametrized(nn.Module):
    """Weight and spectral norms, a power iteration in buffers, a tied matrix, attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.words.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.layers(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        x = self.out(x) * self.scale
        return {"hidden": x, "logits": self.head(x)}


def centre(x: Tensor, *, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss of a user with a state of two tensors, one of them an integer."""
    seen = state["seen"] + x.shape[0]
    mean = state["mean"] + (x.detach().mean(0) - state["mean"]) * 0.2
    return (x - state["mean"]).square().mean(-1), {"mean": mean, "seen": seen}


def weighted_by_others(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """A loss of a user: examples are weighted by a softmax over the batch."""
    return (x - y).square().mean(-1) * w.softmax(0) * w.shape[0]


def entropy_of_mean(p: Tensor) -> Tensor:
    """A loss of a user: one number for the whole batch."""
    return (p.mean(0) * p.mean(0).log()).sum()


def moving() -> fkd.Objective:
    warm = fkd.schedules.linear(0.1, 1.0, steps=4)
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=batch.ok,
                       temperature=fkd.schedules.cosine(4.0, 1.0, steps=4), weight=warm),
            "ce": term(cross_entropy, student.logits, batch.y, weight=lambda step: 1 / (1 + step)),
            "each": term(mse, student.hidden, teacher.hidden, weight=batch.w),
            "slow": term(jsd, student.logits, ref("slow").logits, weight=torch.tensor(0.3)),
            "right": fkd.metric(fkd.metrics.accuracy, student.logits, batch.y),
        },
        student=fkd.trainable(Net(8)),
        teacher=fkd.frozen(Net(8)),
        slow=fkd.ema("student", decay=fkd.schedules.linear(0.5, 0.9, steps=4)),
    )  # fmt: skip


def stateful(norm: nn.Module | None = None) -> fkd.Objective:
    s, t = fkd.module("ps")(student.hidden), fkd.module("pt")(teacher.hidden)
    state = {"mean": torch.zeros(8), "seen": torch.zeros((), dtype=torch.long)}
    return fkd.Objective(
        {
            "ce": term(cross_entropy, student.logits, batch.y),
            "crd": term(crd, s, t, state=crd_init(8, 4), dataset_size=50, weight=0.1),
            "queue": term(queue_kl, s, t, state=queue_init(6, 4), where=batch.ok),
            "dino": term(dino, fkd.call(torch.unsqueeze, student.logits, 1),
                         fkd.call(torch.unsqueeze, teacher.logits, 1), state=dino_init(CLASSES),
                         same_view=True, weight=0.1),
            "centre": term(centre, student.hidden, state=state),
        },
        student=fkd.trainable(Net(8, norm=norm)),
        teacher=fkd.frozen(Net(8)),
        ps=fkd.trainable(nn.Linear(8, 4)),
        pt=fkd.trainable(nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4))),
    )  # fmt: skip


def relational() -> fkd.Objective:
    return fkd.Objective(
        {
            "distance": term(rkd_distance, student.hidden, teacher.hidden, where=batch.ok),
            "angle": term(rkd_angle, student.hidden, teacher.hidden),
            "sp": term(similarity_preserving, student.hidden, teacher.hidden),
            "nce": term(infonce, fkd.module("p")(student.hidden), teacher.hidden, where=batch.ok),
            "dist": term(dist, student.logits, teacher.logits),
            "softmax": term(weighted_by_others, student.hidden, teacher.hidden, batch.w),
            "spread": fkd.metric(lambda x: x.std(0).mean(), student.hidden),
            "balance": term(entropy_of_mean, student.logits.softmax(-1)),
        },
        student=fkd.trainable(Net(8)),
        teacher=fkd.frozen(Net(8)),
        p=fkd.trainable(nn.Linear(8, 8)),
    )  # fmt: skip


def vision() -> fkd.Objective:
    return fkd.Objective(
        {
            "ce": term(cross_entropy, student.logits, batch.y),
            "at": term(attention_transfer, student.map, teacher.map),
            "tap": term(mse, fkd.module("regress")(student.tap("body.1")), teacher.tap("body.1")),
            "input": term(mse, student.tap("head", "input"), ref("slow").hidden),
            "rkd": term(rkd_distance, student.hidden, teacher.hidden),
            "slow": term(kl, student.logits, ref("slow").logits, temperature=2.0),
            "vid": term(vid, student.last, teacher.last, log_scale=student.param("stem.1.weight")),
        },
        student=fkd.trainable(Conv(4)),
        teacher=fkd.frozen(Conv(4)),
        slow=fkd.ema("student", decay=0.8),
        regress=fkd.trainable(
            nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        ),
    )


def bert(**more: Any) -> Any:
    import transformers

    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=more.pop("layers"),
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=CLASSES, **more,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def bert_objective() -> fkd.Objective:
    ok = batch.attention_mask.bool()
    pairs = fkd.layer_map(student=2, teacher=4)
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
            "ce": term(cross_entropy, student.logits, batch.labels[:, 0] % CLASSES),
            "hidden": [
                term(mse, fkd.module("p")(student.hidden_states[s]), teacher.hidden_states[t],
                     where=ok)
                for s, t in pairs
            ],
            "maps": term(attention_mse, student.attention_scores(1), teacher.attention_scores(3)),
            "values": term(mse, student.value(1), teacher.value(3)),
            "embedding": term(mse, student.param("bert.embeddings.word_embeddings.weight"),
                              teacher.param("bert.embeddings.word_embeddings.weight"), weight=0.1),
            "tap": term(mse, student.tap("bert.encoder.layer.1.output"),
                        teacher.tap("bert.encoder.layer.3.output"), where=ok),
        },
        student=fkd.trainable(bert(layers=2)),
        teacher=fkd.frozen(bert(layers=4)),
        p=fkd.trainable(nn.Linear(8, 8)),
    )  # fmt: skip


def llama(layers: int, *, tied: bool = True, width: int = 8) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=16, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def llama_objective(*, checkpointing: bool = False, packed: bool = False) -> fkd.Objective:
    small, big = llama(2), llama(3, tied=False, width=12)
    if checkpointing:
        small.gradient_checkpointing_enable()
    targets = call(next_tokens, batch.labels)
    hidden = {"s": student.hidden_states[-1], "t": teacher.hidden_states[-1], "y": targets}
    where = targets != -100
    if packed:
        hidden = {k: call(take, v, batch.packed) for k, v in hidden.items()}
        where = batch.packed.kept
    return fkd.Objective(
        {
            "head": term(
                head_divergence, hidden["s"], student.param("lm_head.weight"), hidden["t"],
                teacher.param("lm_head.weight"), labels=hidden["y"], where=where,
                divergence=0.7 * head.kl() + 0.3 * head.cross_entropy() + 0.1 * head.jsd(0.5),
            ),
            "mlp": term(mse, fkd.module("p")(student.tap("model.layers.1.mlp")),
                        teacher.tap("model.layers.2.mlp"), where=batch.attention_mask),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
        p=fkd.trainable(nn.Linear(8, 12)),
    )  # fmt: skip


def packed_texts() -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = []
    for one in texts(6, 6, 6):
        counts = next_tokens(one["labels"]) != -100
        drawn.append({**one, "packed": pack(counts, multiple=4, parts=6)})
    return drawn


def gpt2_heads() -> fkd.Objective:
    import transformers

    from fkd.interop.transformers import heads

    def model(layers: int) -> Any:
        config = transformers.GPT2Config(
            vocab_size=WORDS, n_embd=8, n_layer=layers, n_head=2, n_positions=16,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)

    small, big = model(1), model(2)
    return fkd.Objective(
        {
            "head": term(head_divergence, **heads(student=small, teacher=big),
                         labels=batch.labels, shift=True, divergence=head.reverse_kl()),
            "maps": term(attention_mse, student.attention_scores(0), teacher.attention_scores(1)),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )  # fmt: skip


def t5() -> fkd.Objective:
    import transformers

    def model(layers: int) -> Any:
        config = transformers.T5Config(
            vocab_size=WORDS, d_model=8, d_kv=4, d_ff=16, num_layers=layers, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)

    counts = batch.labels != -100
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=counts),
            "ce": term(cross_entropy, student.logits, batch.labels),
            "cross": term(
                mse, student.encoder_last_hidden_state, teacher.encoder_last_hidden_state
            ),
        },
        student=fkd.trainable(model(1)),
        teacher=fkd.frozen(model(2)),
    )


def lora() -> fkd.Objective:
    import peft

    base = llama(2)
    adapted = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0),
    )
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits, where=batch.attention_mask)},
        student=fkd.trainable(adapted),
        teacher=fkd.frozen(llama(2)),
    )


def turns() -> fkd.Objective:
    """Two models that learn from each other, and an adapter that one term trains."""
    return fkd.Objective(
        {
            "first": term(kl, student.logits, ref("peer").logits, to="student"),
            "second": term(kl, ref("peer").logits, student.logits, to="peer"),
            "labels": term(cross_entropy, student.logits, batch.y),
            "peer": term(cross_entropy, ref("peer").logits, batch.y),
            "p": term(mse, fkd.module("p")(student.hidden), ref("peer").hidden, to=("p", "peer")),
        },
        student=fkd.trainable(Net(8)),
        peer=fkd.trainable(Net(6)),
        p=fkd.trainable(nn.Linear(8, 6)),
    )


def recurrent() -> fkd.Objective:
    return fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits)},
        student=fkd.trainable(Recurrent(8)),
        teacher=fkd.frozen(Recurrent(8)),
    )


def parametrized() -> fkd.Objective:
    ok = batch.attention_mask
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, where=ok),
            "own": term(mse, student.hidden, teacher.hidden, where=ok),
            "head": term(mse, student.param("head.weight"), teacher.param("words.weight")),
        },
        student=fkd.trainable(Parametrized(8)),
        teacher=fkd.frozen(Parametrized(8)),
    )


def partly() -> fkd.Objective:
    """Frozen parts of the student, parameters that no term reads, two teachers, plain functions."""
    net = Net(8)
    net.first.weight.requires_grad_(False)
    net.extra = nn.Linear(40, 3)
    both = (ref("one").logits + ref("two").logits) / 2
    return fkd.Objective(
        {
            "kd": term(kl, student.logits, both),
            "fn": term(mse, lambda ctx: ctx["student"]["hidden"][:, :4], teacher.hidden[:, :4]),
            "stop": term(mse, student.hidden, fkd.stop_gradient(student.hidden) * 0.5),
        },
        student=fkd.trainable(net, unused=["extra"]),
        one=fkd.frozen(Net(8)),
        two=fkd.frozen(Net(4)),
        teacher=fkd.frozen(Net(8)),
    )


def tuples() -> list[Any]:
    return [(one["x"], one["y"]) for one in vectors(7, 5, 7)]


def of_tuples() -> fkd.Objective:
    plain = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    return fkd.Objective(
        {"kd": term(kl, student.logits, teacher.logits),
         "ce": term(cross_entropy, student.logits, batch[1])},
        student=fkd.trainable(plain),
        teacher=fkd.frozen(copy.deepcopy(plain).double(), inputs=lambda b: b[0].double(),
                           outputs=lambda y: y.float()),
    )  # fmt: skip


def poisoned() -> fkd.Objective:
    """nan where the padding is."""
    score = call(torch.unsqueeze, batch.score, -1)
    return fkd.Objective(
        {"score": term(mse, student.logits[..., :1], score, where=batch.attention_mask),
         "kd": term(kl, student.logits, teacher.logits, where=batch.attention_mask)},
        student=fkd.trainable(Parametrized(8)),
        teacher=fkd.frozen(Parametrized(8)),
    )  # fmt: skip


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3, eps=1e-3)


def few() -> list[dict[str, Tensor]]:
    return vectors(1, 2, 1, 4)


BY_MODEL = {
    "optimizer": {"student": adamw, ("peer", "p"): adamw},
    "clip": {"student": 0.1},
    "when": {"peer": lambda step: step % 2 == 0},
    "lr": lambda step: 1.0 / (1 + step),
}
CASES: dict[str, Case] = {
    "moving weights": Case(moving, lambda: vectors(7, 7, 12, 12)),
    "moving weights, accumulated": Case(moving, lambda: vectors(7, 12, 12), {"accumulate": 3}),
    "moving weights, few": Case(moving, few),
    "moving weights, bf16": Case(moving, lambda: vectors(9, 9, 9), {"precision": "bf16"}, 3e-2),
    "a rank without labels": Case(moving, lambda: vectors(8, 8, 9, first_counts=False)),
    "stateful": Case(stateful, lambda: vectors(7, 7, 12)),
    "stateful, BatchNorm": Case(lambda: stateful(nn.BatchNorm1d(8)), lambda: vectors(7, 7, 12)),
    "stateful, accumulated": Case(stateful, lambda: vectors(12, 12), {"accumulate": 2}),
    "relational": Case(relational, lambda: vectors(7, 12, 6)),
    "relational, few": Case(relational, lambda: vectors(4, 5)),
    "relational, dot": Case(relational, lambda: vectors(7, 7), {"combine": fkd.gradients.pcgrad()},
                            without=("shard",)),
    "vision": Case(vision, lambda: images(7, 7, 5)),
    "vision, accumulated": Case(vision, lambda: images(8, 8), {"accumulate": 2}),
    "vision, few": Case(vision, lambda: images(4, 4)),
    "BatchNorm, one example": Case(lambda: stateful(nn.LayerNorm(8)), lambda: vectors(2, 2)),
    "turns": Case(turns, lambda: vectors(7, 7, 5), BY_MODEL),
    "recurrent": Case(recurrent, lambda: texts(5, 5), without=("graph",)),
    "parametrized": Case(parametrized, lambda: texts(5, 5)),
    "partly": Case(partly, lambda: vectors(5, 7)),
    "tuples": Case(of_tuples, tuples),
    "poisoned": Case(poisoned, lambda: texts(5, 5, poison=True)),
    "bert": Case(bert_objective, lambda: texts(5, 5)),
    "bert, accumulated": Case(bert_objective, lambda: texts(6, 6), {"accumulate": 2}),
    "bert, bf16": Case(bert_objective, lambda: texts(6, 6), {"precision": "bf16"}, 3e-2),
    "llama": Case(llama_objective, lambda: texts(5, 6)),
    "llama, few": Case(llama_objective, lambda: texts(2, 1)),
    "llama, bf16": Case(llama_objective, lambda: texts(6, 6), {"precision": "bf16"}, 3e-2),
    "llama, checkpointing": Case(lambda: llama_objective(checkpointing=True), lambda: texts(5, 6)),
    "llama, packed": Case(lambda: llama_objective(packed=True), packed_texts),
    "gpt2": Case(gpt2_heads, lambda: texts(5, 5)),
    "t5": Case(t5, lambda: texts(5, 5)),
    "lora": Case(lora, lambda: texts(5, 5)),
}  # fmt: skip
