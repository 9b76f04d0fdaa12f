"""What training from a cache costs: a step, a read, bytes for a position, and making the cache.

    python benchmarks/cache.py --threads 1          # all of it, as one table
    python benchmarks/cache.py --part build

A language model (Llama, by head) and a BERT classifier (exact logits). A step draws its batch from
a shuffled loader, with what is kept attached to it, so that its time has the read in it; it is
compared with the same student on labels alone, in the same process, in turn. Nothing is compiled.
The teacher's own forward pass, over the same batches and without a cache, is what making one is
compared with. Each part replaces its rows in `results/cache_cpu.json` and `.md`.

Two columns say what no implementation can undercut. `products`: the FLOPs of the matrix products
that a step has to make, over those of labels only. Exact hidden states need one more, the
teacher's head (`2 positions hidden vocabulary`), beside the three of the student's (logits, and the
gradients by hidden states and by weights). `one softmax`: the teacher's throughput if nothing were
done to its logits but one softmax, which top-k with its tail and draws need in one form or another.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from _cache_table import SUBJECTS, joined, page, table
from _measure import RESULTS, arguments, clock_of, machine
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

import fkd
from fkd import batch, frozen, student, teacher, term, trainable
from fkd.loops import next_tokens, train_step
from fkd.losses import cross_entropy, head, head_divergence, kl, top_k_kl
from fkd.sources import Kept, bind, cache, exact, sampled, scaled, top_k
from fkd.sources._live import Teacher
from fkd.sources._select import by_blocks

Step = Callable[[], float]
clock: Callable[[], float] = time.perf_counter
"""What seconds are measured by: `--clock`."""


def llama(vocab: int, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
        )
    )


def bert(hidden: int, layers: int, seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=8000,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def texts(count: int, length: int, vocab: int) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (count, length), generator=draw)
    labels = torch.randint(2, (count,), generator=draw)
    return [
        {"input_ids": x, "targets": next_tokens(x[None])[0], "labels": y, "index": torch.tensor(i)}
        for i, (x, y) in enumerate(zip(ids, labels, strict=True))
    ]


def loader(rows: list[dict[str, Tensor]], size: int, *, shuffle: bool = True) -> Any:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(rows, size, shuffle=shuffle, drop_last=True, generator=generator)


def endless(data: Any) -> Iterator[Any]:
    while True:
        yield from data


def step_of(objective: fkd.Objective, data: Any) -> Step:
    """One step with the drawing of its batch, in seconds."""
    step = train_step(objective, lambda p: torch.optim.AdamW(p, lr=1e-4), compile=False)
    state, batches = step.init(), endless(data)

    def run() -> float:
        nonlocal state
        start = clock()
        state, metrics = step(state, next(batches))
        float(metrics["loss/total"])
        return clock() - start

    return run


def in_turn(steps: Mapping[str, Step], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each, and the median of its ratios to the first, taken within each round."""
    for run in steps.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, run in steps.items():
            seconds[name].append(run())
    floor = next(iter(seconds.values()))
    return {
        name: {
            "ms": 1e3 * statistics.median(s),
            "ratio": statistics.median(a / b for a, b in zip(s, floor, strict=True)),
        }
        for name, s in seconds.items()
    }


def read_cost(kept: Kept, data: Any, positions: int) -> dict[str, float]:
    """Microseconds and bytes for a position."""
    made = list(data)
    best = float("inf")
    for _ in range(3):
        start = clock()
        for one in made:
            kept.values(one)
        best = min(best, clock() - start)
    stored = sum(shard.size for shard in kept.header.shards)
    return {
        "read_us": 1e6 * best / (len(made) * positions),
        "bytes": stored / (len(kept) * positions / made[0]["index"].shape[0]),
    }


def build_cost(
    objective: fkd.Objective, keep: Mapping[Any, Any], data: Any, folder: Path, rounds: int = 3
) -> dict[str, float]:
    """Seconds of making a cache, and of the teacher's forward pass over the same batches, up to
    what is kept or what it is chosen from.

    What is found out on the first batch costs the same for any number of batches (`begin`): the
    share of the teacher's throughput is that of the batches after it.
    """
    chosen_from = {ref: one.of for ref, one in keep.items() if getattr(one, "of", None) is not None}
    refs = [chosen_from.get(ref, ref) for ref in fkd.sources.frontier(objective)]
    teacher_alone = Teacher(objective, refs)
    batches = list(data)
    half = len(batches) // 2
    teacher_alone(batches[0])

    def making(some: list[Any], name: str) -> float:
        start = clock()
        cache(objective, some, folder / name, keep=keep, key="index", progress=False)
        return clock() - start

    def forward() -> float:
        start = clock()
        for one in batches[half:]:
            teacher_alone(one)
        return clock() - start

    # The least of each: what else runs on the machine only adds.
    times = [(making(batches[:half], f"{i}-half"), forward(), making(batches, f"{i}-whole"))
             for i in range(rounds)]  # fmt: skip
    few, alone, every = (min(each) for each in zip(*times, strict=True))
    return {
        "forward_seconds": alone,
        "throughput": alone / (every - few),
        "begin": few - half * (every - few) / len(batches[half:]),
    }


def softmax_share(teacher_alone: Teacher, batches: list[Any], rounds: int) -> float:
    """The throughput of a teacher of whose logits one softmax is taken, over its own."""

    def forward(then: Callable[[Tensor], Any]) -> float:
        start = clock()
        for one in batches:
            then(teacher_alone(one)[0])
        return clock() - start

    def softmax(logits: Tensor) -> Any:
        return by_blocks(lambda z: (z.softmax(-1).sum(-1),), logits)

    times = [(forward(len), forward(softmax)) for _ in range(rounds)]
    alone, more = (min(each) for each in zip(*times, strict=True))
    return alone / more


def builds(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Of a classifier's logits, and of a language model."""
    texts_of = texts(options.samples, options.length, 8000)
    logits = term(kl, student.logits, teacher.logits)
    small = fkd.Objective({"kd": logits}, teacher=frozen(bert(options.teacher, 4, 0)))
    plain = loader(texts_of, options.batch, shuffle=False)
    found = {"classifier: logits, exact": build_cost(small, {}, plain, folder / "bert-build")}
    rounds = min(3, options.rounds)
    hidden = teacher.hidden_states[-1]
    by_head = term(head_divergence, student.hidden_states[-1], student.param("lm_head.weight"),
                   hidden, teacher.param("lm_head.weight"), divergence=head.kl())  # fmt: skip
    big = fkd.Objective({"kd": by_head},
                        teacher=frozen(llama(options.vocab, options.teacher, 4, 0)))  # fmt: skip
    plain = loader(texts(options.samples, options.length, options.vocab), options.batch,
                   shuffle=False)  # fmt: skip
    for name, keep in {
        "hidden, exact": {},
        "top 64": {hidden: top_k(64, of=teacher.logits)},
        "50 draws": {hidden: sampled(50, of=teacher.logits)},
    }.items():
        place = folder / f"{name}-build"
        found[f"language model: {name}"] = build_cost(big, keep, plain, place, rounds)
    share = softmax_share(Teacher(big, [teacher.logits]), list(plain)[:4], rounds)
    for name in ("top 64", "50 draws"):
        found[f"language model: {name}"]["softmax_share"] = share
    return found


def losses(options: argparse.Namespace) -> dict[str, Any]:
    """A loss of whole logits with its gradient, dense and from 64 classes; milliseconds."""
    positions, vocab = options.batch * options.length // 2, options.vocab
    draw = torch.Generator().manual_seed(0)
    student_logits = torch.randn(positions, vocab, generator=draw).requires_grad_()
    teacher_logits = 3 * torch.randn(positions, vocab, generator=draw)
    known, few = top_k(64)(teacher_logits), sampled(50)(teacher_logits)

    def timed(fn: Callable[[], Tensor]) -> Step:
        def run() -> float:
            start = clock()
            torch.autograd.grad(fn().sum(), student_logits)
            return clock() - start

        return run

    every = {
        "kl, dense": lambda: kl(student_logits, teacher_logits),
        "kl, top 64": lambda: kl(student_logits, known),
        "top_k_kl, tail": lambda: top_k_kl(student_logits, known.log_probs, known.ids),
        "kl, 50 draws": lambda: kl(student_logits, few),
    }
    return in_turn({name: timed(fn) for name, fn in every.items()}, options.rounds)


def product_ratio(options: argparse.Namespace, layers: int = 2) -> float:
    """FLOPs of the matrix products of a step from hidden states with the teacher's head, over those
    of labels only, for one position.

    A parameter of the student has a product in the forward pass and two in the backward one; the
    embedding of its tokens has none. Attention between positions is left out: it is small here.
    """
    small = llama(options.vocab, options.student, layers, 1)
    within = sum(p.numel() for n, p in small.named_parameters()
                 if p.ndim == 2 and "embed_tokens" not in n)  # fmt: skip
    return (3 * within + options.teacher * options.vocab) / (3 * within)


def language_model(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """By head, from what is kept of the teacher."""
    vocab, rows = options.vocab, texts(options.samples, options.length, options.vocab)
    big = llama(vocab, options.teacher, 4, 0)
    heads = student.hidden_states[-1], student.param("lm_head.weight")
    theirs = teacher.hidden_states[-1], teacher.param("lm_head.weight")
    counts = batch.targets != -100

    def small() -> Any:
        return trainable(llama(vocab, options.student, 2, 1))

    def kd(**models: Any) -> fkd.Objective:
        made = term(head_divergence, *heads, *theirs, divergence=head.kl(), where=counts)
        return fkd.Objective({"kd": made}, student=small(), **models)

    labels = term(head_divergence, *heads, divergence=head.cross_entropy(), labels=batch.targets,
                  teacher_hidden=None, teacher_weight=None)  # fmt: skip
    data = loader(rows, options.batch)
    steps = {"labels only": step_of(fkd.Objective({"labels": labels}, student=small()), data)}
    steps["teacher in the step"] = step_of(kd(teacher=frozen(big)), data)
    hidden, of = teacher.hidden_states[-1], teacher.logits
    keeps = {
        "hidden, exact": {},
        "hidden, bf16": {hidden: exact(torch.bfloat16)},
        "hidden, int8": {hidden: scaled()},
        "top 64": {hidden: top_k(64, of=of)},
        "top 64, half": {hidden: top_k(64, dtype=torch.float16, of=of)},
        "50 draws": {hidden: sampled(50, of=of)},
        "12 draws": {hidden: sampled(12, of=of)},
    }
    read: dict[str, Any] = {}
    positions = options.batch * options.length
    for name, keep in keeps.items():
        whole = kd(teacher=frozen(big))
        kept = cache(whole, loader(rows, options.batch, shuffle=False), folder / name,
                     key="index", keep=keep, progress=False)  # fmt: skip
        steps[name] = step_of(bind(whole, kept), kept.attach(data))
        read[name] = read_cost(kept, loader(rows, options.batch, shuffle=False), positions)
    times = in_turn(steps, options.rounds)
    whole_logits = {"logits, bf16 (read only)": logits_read(options, big, folder)}
    for name, seconds in times.items():
        if name != "teacher in the step":
            seconds["products"] = product_ratio(options) if name.startswith("hidden") else 1.0
    return {
        name: {**seconds, **read.get(name, {})} for name, seconds in times.items()
    } | whole_logits


def logits_read(options: argparse.Namespace, big: Any, folder: Path) -> dict[str, float]:
    """Of all logits, for two batches: nobody would keep more."""
    objective = fkd.Objective({"kd": term(kl, student.logits, teacher.logits)}, teacher=frozen(big))
    few = loader(texts(2 * options.batch, options.length, options.vocab), options.batch)
    kept = cache(objective, few, folder / "logits", key="index", progress=False,
                 keep={teacher.logits: exact(torch.bfloat16)})  # fmt: skip
    return read_cost(kept, few, options.batch * options.length)


def classifier(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """BERT with labels, and with the teacher's exact logits and hidden states beside them."""
    rows = texts(options.samples, options.length, 8000)
    big, data = bert(options.teacher, 4, 0), loader(rows, options.batch)

    def goal(*names: str, **models: Any) -> fkd.Objective:
        every = {
            "labels": term(cross_entropy, student.logits, batch.labels),
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0),
        }
        small = trainable(bert(options.student, 2, 1))
        return fkd.Objective({n: every[n] for n in names}, student=small, **models)

    steps = {"labels only": step_of(goal("labels"), data)}
    whole = goal("labels", "kd", teacher=frozen(big))
    steps["teacher in the step"] = step_of(whole, data)
    plain = loader(rows, options.batch, shuffle=False)
    kept = cache(whole, plain, folder / "bert", key="index", progress=False)
    steps["logits, exact"] = step_of(bind(whole, kept), kept.attach(data))
    read = {"logits, exact": read_cost(kept, plain, options.batch)}
    times = in_turn(steps, options.rounds)
    return {name: {**seconds, **read.get(name, {})} for name, seconds in times.items()}


def main() -> None:
    global clock
    parser = arguments(__doc__, vocab=32000, samples=48, length=128, batch=8, student=256,
                       teacher=512)  # fmt: skip
    parser.add_argument("--part", choices=["all", *SUBJECTS], default="all")
    options = parser.parse_args()
    clock = clock_of(options)
    torch.set_num_threads(options.threads)
    file = RESULTS / f"{options.name or 'cache_cpu'}.json"
    made = json.loads(file.read_text()) if file.exists() and options.name != "" else {}
    about = {k: v for k, v in vars(options).items() if k not in ("name", "part")}
    with tempfile.TemporaryDirectory() as name:
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "classifier": lambda: classifier(options, Path(name)),
            "language-model": lambda: language_model(options, Path(name)),
            "build": lambda: builds(options, Path(name)),
            "losses": lambda: losses(options),
        }
        for part, measure in parts.items():
            if options.part in ("all", part):
                rows = measure()
                made[part] = {"options": about, "machine": machine(options), "rows": rows}
                gc.collect()
    made = {part: made[part] for part in SUBJECTS if part in made}
    shown = SUBJECTS if options.part == "all" else [options.part]
    print(table(joined({part: made[part] for part in shown})))
    if options.name != "":
        file.write_text(json.dumps(made, indent=1) + "\n")
        file.with_suffix(".md").write_text(page(made))


if __name__ == "__main__":
    main()
