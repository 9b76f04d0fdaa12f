"""Distillation in a loop of your own: modules and an optimizer that you hold.

    python examples/plain_loop.py

`bind` makes of an objective a function of the batch, whose gradient lands in the parameters of
the modules themselves. Everything else of the loop stays as it is.
"""

import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.interop.modules import bind
from fkd.losses import cross_entropy, kl


def make_model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def main() -> list[float]:
    torch.manual_seed(0)
    small, large = make_model(16), make_model(64)
    x = torch.randn(512, 8)
    data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(-1))
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)

    # The teacher is trained first, on the labels.
    optimizer = torch.optim.AdamW(large.parameters(), lr=1e-2)
    for inputs, labels in (pair for _ in range(10) for pair in loader):
        nn.functional.cross_entropy(large(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    objective = fkd.Objective(
        {
            "kd": term(kl, student.logits, teacher.logits, temperature=2.0, weight=0.8),
            "labels": term(cross_entropy, student.logits, batch[1], weight=0.2),
        },
        student=fkd.trainable(small),
        teacher=fkd.frozen(large),
    )
    print(fkd.check(objective, next(iter(loader))))
    loss_fn = bind(objective)  # bind(objective, compile=True) for one compiled graph

    optimizer = torch.optim.AdamW(loss_fn.parameters(), lr=1e-2)
    losses: list[float] = []
    for epoch in range(10):
        small.train()
        for pair in loader:
            loss, aux = loss_fn(pair)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        small.eval()
        accuracy = (small(x).argmax(-1) == data.tensors[1]).float().mean().item()
        losses.append(loss.item())
        kd = aux.terms["kd"].value.item()
        print(f"epoch {epoch}: loss {losses[-1]:.3f}, kd {kd:.3f}, accuracy {accuracy:.3f}")
    return losses


if __name__ == "__main__":
    main()
