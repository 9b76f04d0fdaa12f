"""What padding costs: an epoch of texts of all lengths, and a head of which few positions count.

    python benchmarks/padding.py
    python benchmarks/padding.py --device cuda --hidden 768 --examples 4096 --batch 64 --bf16

An epoch (BERT, 4 -> 2 layers, hidden states; lengths log-normal around 24 tokens, at most 128):
every batch padded to the longest text of all; each padded to its own longest, up to a multiple of
8, not compiled, since there are as many shapes as batches; and batches of like length from
`bucket_batches`, in as many shapes as there are buckets. All see every example once; the sums of
the loss over all tokens, and the numbers of tokens, are compared before anything is timed.

A step of a language model (embedding and head, 30 % of the positions count): `kl` of all logits
with `where`, the same of `pack`ed logits, and the head term of all and of packed hidden states.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _measure import COLUMNS, Run, arguments, compare, same, table, write
from _steps import fkd_gradients, fkd_step
from bert import bert
from torch import Tensor, nn

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import bucket_batches, bucket_lengths, pack, pad_batch, take
from fkd.losses import head, head_divergence, kl, mse

Batches = list[dict[str, Tensor]]


# An epoch of texts


def texts(options: argparse.Namespace) -> list[list[int]]:
    g = torch.Generator().manual_seed(0)
    lengths = (24 * torch.randn(options.examples, generator=g).mul(0.6).exp()).round()
    return [torch.randint(5, 30000, (int(n),), generator=g).tolist() for n in lengths.clamp(4, 128)]


def batches(
    options: argparse.Namespace,
    given: Sequence[list[int]],
    made: Sequence[tuple[Sequence[int], list[int]]],
) -> Batches:
    """`(examples, edges)` -> batches."""
    padded = [
        pad_batch([{"input_ids": given[i]} for i in examples], edges=edges, size=options.batch)
        for examples, edges in made
    ]
    return [{k: v.to(options.device) for k, v in one.items()} for one in padded]


def epochs(options: argparse.Namespace, given: Sequence[list[int]]) -> dict[str, Batches]:
    lengths = [len(ids) for ids in given]
    size = options.batch
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(1)).tolist()
    drawn = [order[i : i + size] for i in range(0, len(order), size)]
    edges = bucket_lengths(lengths, options.buckets)
    alike = bucket_batches(lengths, size, edges, seed=1)
    return {
        "longest of all": batches(options, given, [(b, [edges[-1]]) for b in drawn]),
        "longest of the batch, eager": batches(
            options, given, [(b, list(range(8, 129, 8))) for b in drawn]
        ),
        "buckets": batches(options, given, [(b.examples, edges) for b in alike]),
    }


def layers(options: argparse.Namespace) -> fkd.Objective:
    mask = fkd.call(torch.mul, batch.attention_mask, fkd.call(_column, batch.valid))
    hidden = {
        f"{s}<-{t}": term(mse, student.hidden_states[s], teacher.hidden_states[t], where=mask)
        for s, t in ((1, 2), (2, 4))
    }
    return fkd.Objective(
        {"hidden": hidden},
        student=fkd.trainable(bert(options, 2, "sdpa")),
        teacher=fkd.frozen(bert(options, 4, "sdpa").eval()),
    )


def _column(valid: Tensor) -> Tensor:
    return valid[:, None]


def total(options: argparse.Namespace, data: Batches) -> dict[str, Tensor]:
    """The sum of the loss over all tokens of an epoch and their number, without updates."""
    objective = layers(options)
    parts = objective.init()
    sums, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for one in data:
            _, aux = objective(parts, one)
            for mean in aux.terms.values():
                sums += mean.total.double().cpu()
                count += mean.count.double().cpu()
    return {"loss": sums, "count": count}


def padding(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    given = texts(options)
    made = epochs(options, given)
    expected = total(options, made["buckets"])
    notes = [same(name, total(options, data), expected, 1e-4) for name, data in made.items()]
    rows = compare(
        {
            name: lambda name=name, data=data: fkd_step(
                layers(options), *data, compile="eager" not in name, bf16=options.bf16
            )
            for name, data in made.items()
        },
        options,
        baseline="buckets",
    )
    counted = sum(map(len, given))
    for name, data in made.items():
        rows[name]["valid_share"] = counted / sum(b["input_ids"].numel() for b in data)
        rows[name]["shapes"] = len({b["input_ids"].shape for b in data})
        if "median_s" in rows[name]:
            rows[name]["valid_tokens_per_s"] = counted / rows[name]["median_s"]
    return rows, notes


# Positions that do not count


class Speaker(nn.Module):
    """The least of a language model: an embedding, one product, a head."""

    def __init__(self, vocab: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, hidden)
        self.body = nn.Linear(hidden, hidden)
        self.lm_head = nn.Linear(hidden, vocab, bias=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(self.embed(ids)))
        return {"hidden": hidden, "logits": self.lm_head(hidden)}


def heads(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    torch.manual_seed(0)
    pair = [Speaker(options.vocab, options.hidden).to(options.device) for _ in range(2)]
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, options.vocab, (4, options.tokens // 4), generator=g)
    valid = torch.rand(ids.shape, generator=g) < 0.3
    data = {"ids": ids, "valid": valid, "packed": pack(valid, multiple=64)}
    data = torch.utils._pytree.tree_map(lambda x: x.to(options.device), data)

    def rows(values: Any) -> Any:
        return fkd.call(take, values, batch.packed)

    def objective(way: str) -> fkd.Objective:
        keep, where = (rows, batch.packed.kept) if "packed" in way else (lambda x: x, batch.valid)
        if "head" in way:
            made = term(
                head_divergence,
                keep(student.hidden),
                student.param("lm_head.weight"),
                keep(teacher.hidden),
                teacher.param("lm_head.weight"),
                divergence=head.kl(),
                where=where,
            )
        else:
            made = term(kl, keep(student.logits), keep(teacher.logits), where=where)
        inputs = {"inputs": lambda b: {"ids": b["ids"]}}
        return fkd.Objective(
            {"kd": made},
            student=fkd.trainable(pair[0], **inputs),
            teacher=fkd.frozen(pair[1], **inputs),
        )

    ways = ("logits", "logits, packed", "head", "head, packed")
    expected = fkd_gradients(objective("logits"), data, bf16=options.bf16)
    tolerance = 5e-2 if options.bf16 else 1e-3
    notes = [
        same(way, fkd_gradients(objective(way), data, bf16=options.bf16), expected, tolerance)
        for way in ways
    ]
    make: dict[str, Callable[[], Run]] = {
        way: lambda way=way: fkd_step(objective(way), data, bf16=options.bf16) for way in ways
    }
    return compare(make, options, baseline="head, packed"), notes


def main() -> None:
    sizes = {"hidden": 128, "examples": 512, "batch": 32, "buckets": 4, "tokens": 2048}
    options = arguments(__doc__ or "", **sizes, vocab=16000).parse_args()
    torch.set_num_threads(options.threads)
    longer = {"valid_tokens_per_s": ".0f", "valid_share": ".2f", "shapes": "d"}
    epochs_of, notes = padding(options)
    heads_of, more = heads(options)
    print("\n".join([*notes, *more, ""]))
    print(table(epochs_of, {**COLUMNS, **longer}) + "\n")
    print(table(heads_of, COLUMNS))
    results = {"an epoch of texts": epochs_of, "30 % of the positions count": heads_of}
    write(f"padding_{options.device}", options, results, [*notes, *more])


if __name__ == "__main__":
    main()
