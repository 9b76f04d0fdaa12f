"""Distillation as the loss of a transformers `Trainer`.

    pip install "fkd[transformers,accelerate]"
    python examples/hf_trainer.py

The Trainer keeps the student, the optimizer, the schedule, logging and saving; only
`compute_loss` is replaced.
"""

import tempfile
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import fkd
from fkd import batch, student, teacher, term
from fkd.interop.modules import bind
from fkd.losses import cross_entropy, kl, mse


def make_model(layers: int) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def make_data(size: int) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(2, 64, (size, 12))
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i[0] % 2} for i in ids]


class DistillationTrainer(Trainer):
    def __init__(self, *args: Any, objective: fkd.Objective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss_fn = bind(objective)
        self.model_accepts_loss_kwargs = False  # the loss is a mean: divide it when accumulating

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, aux = self.loss_fn(inputs, self.state.global_step)
        if model.training and self.state.global_step % self.args.logging_steps == 0:
            self.log({name: mean.value.item() for name, mean in aux.terms.items()})
        return (loss, model(**inputs)) if return_outputs else loss


def main() -> Trainer:
    torch.manual_seed(0)
    small, large = make_model(2), make_model(4)
    terms = {
        "kd": term(kl, student.logits, teacher.logits, temperature=4.0, weight=0.5),
        "labels": term(cross_entropy, student.logits, batch.labels, weight=0.5),
        "hidden": {
            f"{s}<-{t}": term(mse, student.hidden_states[s], teacher.hidden_states[t],
                              where=batch.attention_mask)
            for s, t in fkd.layer_map(student=2, teacher=4)
        },
    }  # fmt: skip
    objective = fkd.Objective(terms, student=fkd.trainable(small), teacher=fkd.frozen(large))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=20, per_device_train_batch_size=16, learning_rate=1e-3,
            logging_steps=10, report_to="none", save_strategy="no", use_cpu=True,
        )  # fmt: skip
        trainer = DistillationTrainer(
            small, arguments, train_dataset=make_data(256), eval_dataset=make_data(64),
            objective=objective,
        )  # fmt: skip
        trainer.train()
        print(trainer.evaluate())
    return trainer


if __name__ == "__main__":
    main()
