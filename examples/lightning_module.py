"""Distillation in Lightning: the objective is the training step of a LightningModule.

    pip install "fkd[lightning]"
    python examples/lightning_module.py

The bound objective is a submodule, so that Lightning moves it, saves the student (and adapters)
with it and switches its modes. The teacher is none: it is in no checkpoint.
"""

from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fkd
from fkd import batch, module, student, teacher, term
from fkd.interop.modules import bind
from fkd.losses import cross_entropy, kl, mse


class Distillation(lightning.LightningModule):
    def __init__(self, objective: fkd.Objective) -> None:
        super().__init__()
        self.loss_fn = bind(objective)  # bind(objective, compile=True) for one compiled graph

    def training_step(self, pair: Any, index: int) -> torch.Tensor:
        loss, aux = self.loss_fn(pair, self.global_step)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({f"loss/{name}": mean.value for name, mean in aux.terms.items()})
        return loss

    def validation_step(self, pair: Any, index: int) -> None:
        inputs, labels = pair
        logits = self.loss_fn.models["student"](inputs)
        self.log("accuracy", (logits.argmax(-1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.loss_fn.parameters(), lr=1e-2)


def make_model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))


def main() -> lightning.Trainer:
    lightning.seed_everything(0, verbose=False)
    x = torch.randn(512, 8)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(-1)), batch_size=64)
    project = module("project")
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0, weight=0.1),
            "labels": term(cross_entropy, student.logits, batch[1]),
            "hidden": term(mse, project(student.tap("0")), teacher.tap("0"), weight=0.1),
        },
        student=fkd.trainable(make_model(16)),
        teacher=fkd.frozen(make_model(64)),
        project=fkd.trainable(nn.Linear(16, 64)),
    )
    trainer = lightning.Trainer(
        max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Distillation(objective), loader, loader)
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
    return trainer


if __name__ == "__main__":
    main()
