"""Distillation in a loop of Hugging Face Accelerate, with gradient accumulation.

    pip install "fkd[accelerate]"
    python examples/accelerate_loop.py          # or: accelerate launch examples/accelerate_loop.py

The bound objective is what is prepared: it is a module whose forward is the loss, so that
devices, mixed precision and several processes are handled as for any model.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fkd
from fkd import batch, student, teacher, term
from fkd.interop.modules import bind
from fkd.losses import cross_entropy, kl


def make_model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def main() -> list[float]:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=not torch.cuda.is_available())
    x = torch.randn(512, 8)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(-1)), batch_size=32, shuffle=True)
    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, weight=0.1),
            "labels": term(cross_entropy, student.logits, batch[1], weight=0.9),
        },
        student=fkd.trainable(make_model(16)),
        teacher=fkd.frozen(make_model(64)),
    )
    bound = bind(objective)
    optimizer = torch.optim.AdamW(bound.parameters(), lr=1e-2)
    loss_fn, optimizer, loader = accelerator.prepare(bound, optimizer, loader)

    losses: list[float] = []
    for epoch in range(10):
        for pair in loader:
            with accelerator.accumulate(loss_fn):
                loss, _ = loss_fn(pair)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        losses.append(loss.item())
        accelerator.print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    trained = accelerator.unwrap_model(loss_fn).models["student"]
    accelerator.print(sum(p.numel() for p in trained.parameters()), "parameters trained")
    return losses


if __name__ == "__main__":
    main()
