"""Images: ResNet to ResNet and ViT to ViT, logits and features, beside plain loops.

    python benchmarks/vision.py --pair resnet --examples 32
    python benchmarks/vision.py --pair vit --examples 32
    python benchmarks/vision.py --device cuda --pair vit --examples 256 --size 224 --bf16

The models are small definitions of their own (CIFAR ResNets 56 -> 20, ViT 12 -> 4 layers).
Terms: soft targets (T = 4), labels, and attention transfer of two stages (ResNet) or the hidden
states of two layers (ViT), of which the teacher's later blocks are only needed by the logits.
`features only` leaves the logits of the teacher out, as in the first stage of a two-stage run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _measure import COLUMNS, Run, arguments, compare, gemm_rate, needed_flops, same, table, write
from _steps import Loss, fkd_gradients, fkd_step, peer_gradients, peer_step
from torch import Tensor, nn

import fkd
from fkd import batch, student, teacher, term
from fkd.losses import attention_transfer, cross_entropy, kl, mse

CLASSES = 100


class Block(nn.Module):
    def __init__(self, inside: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.short = nn.Conv2d(inside, channels, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(torch.relu(self.norm1(self.first(x)))))
        return torch.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nn.Module):
    """A CIFAR ResNet of 6 * blocks + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        stages, inside = [], 16
        for channels in (16, 32, 64):
            parts = [Block(inside, channels, 2 if channels > inside else 1)]
            parts += [Block(channels, channels, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*parts))
            inside = channels
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> dict[str, Any]:
        x, features = torch.relu(self.stem(image)), []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return {"logits": self.head(x.mean((2, 3))), "features": features}


class ViT(nn.Module):
    """Patches of 4 pixels (16 from 64 pixels on), layers of pre-norm attention."""

    def __init__(self, layers: int, size: int, width: int = 192) -> None:
        super().__init__()
        patch = 4 if size < 64 else 16
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> dict[str, Any]:
        x, features = self.patch(image).flatten(2).mT + self.place, []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return {"logits": self.head(self.norm(x).mean(1)), "features": features}


def models(options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    if options.pair == "resnet":
        pair = ResNet(3), ResNet(9)
    else:
        pair = ViT(4, options.size), ViT(12, options.size)
    return pair[0].to(options.device), pair[1].to(options.device).eval()


def layers(options: argparse.Namespace) -> list[tuple[int, int]]:
    return [(0, 0), (1, 1)] if options.pair == "resnet" else [(0, 2), (2, 5)]


def product(options: argparse.Namespace) -> tuple[int, int, int]:
    """The matrix product that most of a step consists of (a convolution of the first stage, as
    a product of patches; a layer's feed-forward)."""
    if options.pair == "resnet":
        return options.examples * options.size**2, 16, 9 * 16
    patch = 4 if options.size < 64 else 16
    return options.examples * (options.size // patch) ** 2, 4 * 192, 192


def images(options: argparse.Namespace) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    found = {
        "image": torch.randn(options.examples, 3, options.size, options.size, generator=g),
        "labels": torch.randint(0, CLASSES, (options.examples,), generator=g),
    }
    return {k: v.to(options.device) for k, v in found.items()}


def objective(options: argparse.Namespace, pair: tuple[nn.Module, nn.Module]) -> fkd.Objective:
    maps = options.pair == "resnet"
    loss, knobs = (attention_transfer, {"convention": "code"}) if maps else (mse, {})
    terms: dict[str, Any] = {
        f"{s}<-{t}": term(loss, student.features[s], teacher.features[t], **knobs)
        for s, t in layers(options)
    }
    if options.features_only:
        unused = ["stages.2", "head"] if options.pair == "resnet" else ["layers.3", "norm", "head"]
    else:
        unused = []
        terms["kd"] = term(kl, student.logits, teacher.logits, temperature=4.0, weight=0.9)
        terms["labels"] = term(cross_entropy, student.logits, batch.labels, weight=0.1)
    return fkd.Objective(
        terms, student=fkd.trainable(pair[0], unused=unused), teacher=fkd.frozen(pair[1])
    )


def plain(options: argparse.Namespace, data: dict[str, Tensor]) -> Loss:
    def energy(x: Tensor) -> Tensor:
        return F.normalize(x.float().square().mean(1).flatten(1), dim=1)

    def loss(small: nn.Module, big: nn.Module) -> Tensor:
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bf16):
            with torch.no_grad():
                t = big(data["image"])
            s = small(data["image"])
        total = torch.zeros((), device=options.device)
        for i, j in layers(options):
            a, b = s["features"][i], t["features"][j]
            if options.pair == "resnet":
                total = total + (energy(a) - energy(b)).square().mean()
            else:
                total = total + F.mse_loss(a.float(), b.float())
        if options.features_only:
            return total
        q, p = (F.log_softmax(x["logits"].float() / 4, -1) for x in (s, t))
        soft = 16 * F.kl_div(q, p, reduction="batchmean", log_target=True)
        return total + 0.9 * soft + 0.1 * F.cross_entropy(s["logits"].float(), data["labels"])

    return loss


def main() -> None:
    parser = arguments(__doc__ or "", examples=32, size=32)
    parser.add_argument("--pair", choices=["resnet", "vit"], default="resnet")
    parser.add_argument("--features-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pair, data = models(options), images(options)
    made, loss = objective(options, pair), plain(options, data)
    expected = fkd_gradients(made, data, bf16=options.bf16)
    tolerance = 5e-2 if options.bf16 else 1e-3
    notes = [same("plain eager loop", peer_gradients(loss, pair), expected, tolerance)]
    print(notes[0])

    def step(compile: Any) -> Run:
        return fkd_step(made, data, compile=compile, bf16=options.bf16)

    make: dict[str, Callable[[], Run]] = {
        "fkd, compiled": lambda: step(True),
        "fkd, eager": lambda: step(False),
        "plain loop, models compiled": lambda: peer_step(loss, pair, compiled=True),
        "plain eager loop": lambda: peer_step(loss, pair),
    }
    flops = needed_flops(step)
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    rate = gemm_rate(options, product(options), dtype)
    notes.append(f"needed: {flops} FLOP a step; measured rate of matrix products: {rate:.3e}/s")
    rows = compare(make, options, baseline="fkd, compiled")
    for row in rows.values():
        if "median_s" in row:
            row["examples_per_s"] = options.examples / row["median_s"]
            row["share_of_floor"] = flops / rate / row["median_s"]
    print(table(rows, {**COLUMNS, "examples_per_s": ".0f", "share_of_floor": ".2f"}))
    case = "features" if options.features_only else "logits"
    write(f"vision_{options.pair}_{case}_{options.device}", options, rows, notes)


if __name__ == "__main__":
    main()
