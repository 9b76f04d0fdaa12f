"""What one captured attention layer costs: pure SDPA, one layer, and output_attentions=True.

    python benchmarks/attention_capture.py --length 512 --batch 4
    python benchmarks/attention_capture.py --device cuda --layers 12 --hidden 768 --compile

One training step (forward and backward) of a BERT on padded text; the loss reads the last hidden
state and, where it is captured, the attention map of the middle layer. Every variant runs in a
process of its own. "expected" is pure SDPA plus one layer of the eager path:

    sdpa + (output_attentions - sdpa) / layers
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
from typing import Any

import torch
from _measure import arguments, clock_of, table, write
from torch import Tensor, nn

VARIANTS = ("sdpa", "capture", "capture scores", "capture values", "output_attentions")


def make(options: argparse.Namespace, implementation: str) -> Any:
    """A BERT of the asked sizes with random weights, without dropout."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=options.length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    return BertModel(config, add_pooling_layer=False).to(options.device)


def forward(options: argparse.Namespace, variant: str) -> tuple[nn.Module, Any]:
    """The model of a variant, and `batch -> loss`."""
    from fkd.interop.transformers import Capture, prepare

    everything = variant == "output_attentions"
    model = make(options, "eager" if everything else "sdpa")
    layer = options.layers // 2
    kinds = {"capture": "attention", "capture scores": "attention_scores"}
    kind = kinds.get(variant, "value")
    captures = [Capture(kind, layer)] if variant.startswith("capture") else []
    prepared = prepare(model, captures)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        raw = model(**batch, **prepared.flags, output_attentions=everything)
        maps = [raw.attentions[layer]] if everything else list(prepared.collect().values())
        # Read as cheaply as can be, so that what is measured is the capture.
        return raw.last_hidden_state.square().mean() + sum(m.mean() for m in maps)

    return model, torch.compile(loss, fullgraph=True) if options.compile else loss


def measure(options: argparse.Namespace, variant: str, result: Any) -> None:
    """Seconds of the fastest step, and the peak memory above that of the model, in MiB."""
    torch.set_num_threads(options.threads)
    model, loss = forward(options, variant)
    generator = torch.Generator().manual_seed(0)
    shape = options.batch, options.length
    ids = torch.randint(5, 1000, shape, generator=generator)
    lengths = torch.randint(options.length // 2, options.length + 1, shape[:1], generator=generator)
    mask = torch.arange(options.length) < lengths[:, None]
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    batch = {k: v.to(options.device) for k, v in batch.items()}
    cuda = options.device == "cuda"
    before = torch.cuda.memory_allocated() if cuda else _resident()
    clock = clock_of(options)
    seconds: list[float] = []
    for i in range(options.repeats + 2):
        if cuda:
            torch.cuda.synchronize()
            if i == 2:
                torch.cuda.reset_peak_memory_stats()
        start = clock()
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            value = loss(batch)
        value.backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(clock() - start)
        model.zero_grad()
    peak = torch.cuda.max_memory_allocated() if cuda else _resident()
    result.put((min(seconds[2:]), (peak - before) / 2**20))


def _resident() -> int:
    """The largest memory that this process has held, in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Time and memory of every variant: the best of several rounds, taken in turn."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, tuple[float, float]] = {}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            queue: Any = spawn.Queue()
            process = spawn.Process(target=measure, args=(options, variant, queue))
            process.start()
            process.join()
            if process.exitcode != 0:
                raise SystemExit(f"{variant}: the process failed")
            seconds, peak = queue.get()
            best = found.get(variant, (seconds, peak))
            found[variant] = min(seconds, best[0]), min(peak, best[1])
    return found


def main() -> None:
    """Measure and print the table."""
    parser = arguments(
        __doc__ or "", rounds=2, repeats=5, length=512, batch=4, layers=6, hidden=384
    )
    parser.add_argument("--compile", action="store_true", help="the forward pass")
    options = parser.parse_args()
    found = run(options)
    sdpa, eager = found["sdpa"], found["output_attentions"]
    expected = [a + (b - a) / options.layers for a, b in zip(sdpa, eager, strict=True)]
    rows = {
        variant: {
            "best_s": seconds,
            "of expected time": seconds / expected[0],
            "peak_mib": peak,
            "of expected memory": peak / expected[1],
        }
        for variant, (seconds, peak) in {**found, "expected": tuple(expected)}.items()
    }
    print(table(rows, dict(zip(rows["sdpa"], (".4f", ".2f", ".0f", ".2f"), strict=True))))
    write(f"attention_capture_{options.length}_{options.device}", options, rows, [])


if __name__ == "__main__":
    main()
