"""What it costs that a student writes its own batches, beside `generate` on a plain module.

    python benchmarks/generation.py --clock cpu --threads 1
    python benchmarks/generation.py --new-tokens 8 --rounds 1 --name ""    # a smoke run

`generate` of transformers on a plain module, and `fkd.loops.language.generator` on the tensors of a
state, write the same tokens after the same prompts (compared before anything is timed); tokens a
second are those of the rows. Then an on-policy step in its two halves: the batch that the student
writes, and the training step on it, compiled or not.
"""

from __future__ import annotations

from typing import Any

import torch
from _measure import arguments, compare, table, write

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import language as lm
from fkd.losses import jsd

PAD, END = 0, 2


def llama(options: Any, hidden: int, layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(hidden)
    config = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * hidden,
        pad_token_id=PAD,
        eos_token_id=END,
    )
    with torch.device(options.device):
        return LlamaForCausalLM(config).eval()


def main() -> None:
    parser = arguments(__doc__ or "", rows=8, prompt=32, new_tokens=64, vocab=8000)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small, big = llama(options, 128, 2), llama(options, 256, 4)
    prompts = {"input_ids": torch.randint(3, options.vocab, (options.rows, options.prompt))}
    prompts["attention_mask"] = torch.ones_like(prompts["input_ids"])
    prompts = {name: x.to(options.device) for name, x in prompts.items()}
    objective = fkd.Objective(
        {"gkd": term(jsd, student.logits, teacher.logits, where=batch.targets != -100)},
        student=fkd.trainable(small),
        teacher=fkd.frozen(big),
    )
    make = lambda params: torch.optim.AdamW(params, lr=1e-4)
    step = fkd.loops.train_step(objective, make, compile=options.compile)
    state = step.init(0)
    # No token ends a text here, so that every call writes as many.
    writer = lm.generator(objective, new_tokens=options.new_tokens, temperature=0.0, end=())

    def plain() -> Any:
        with torch.no_grad():
            return small.generate(
                **prompts, max_new_tokens=options.new_tokens, do_sample=False,
                eos_token_id=None, pad_token_id=PAD,
            )  # fmt: skip

    def written() -> Any:
        return writer(state, prompts, 0)

    assert torch.equal(plain(), written()["input_ids"]), "the two write other tokens"
    texts = written()

    def trained() -> Any:
        nonlocal state
        state, _ = step(state, texts)
        return state

    runs = {
        "generate, plain module": lambda: plain,
        "fkd, generator": lambda: written,
        "fkd, training step on it": lambda: trained,
    }
    rows = compare(runs, options, baseline="generate, plain module")
    tokens = options.rows * options.new_tokens
    for name in [*runs][:2]:
        rows[name]["tokens_per_s"] = tokens / rows[name]["median_s"]
    # Over one another within each round, as the ratios of the table.
    _, wrote, step_s = (rows[name]["ratio"] for name in runs)
    notes = [
        f"decode tokens/s over those of a plain module: {1 / wrote:.3f}",
        f"writing a batch over the training step on it: {wrote / step_s:.2f}",
        f"of which fkd's own share, over the training step: {(wrote - 1) / step_s:.4f}",
    ]
    columns = {"median_s": ".4f", "ratio": ".3f", "tokens_per_s": ".0f", "peak_mib": ".0f"}
    print(table(rows, columns), *notes, sep="\n")
    write(f"generation_{options.device}", options, rows, notes)


if __name__ == "__main__":
    main()
