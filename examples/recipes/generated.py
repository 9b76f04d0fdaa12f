"""Samples that are learned or generated: without data, and diffusion in fewer steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fkd
from fkd import batch, call, module, ref, stop_gradient, student, teacher, term
from fkd.losses import cross_entropy, jsd, mse

from ._recipe import Recipe
from ._small import CNN, images


class Pixels(nn.Module):
    """Pictures that are learned."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.pixels = nn.Parameter(torch.randn(count, 3, 8, 8))


class Denoiser(nn.Module):
    """A noisy picture and the time of its noise to the clean picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        times = time.expand(len(image), 1, *image.shape[2:])
        return self.last(torch.tanh(self.first(torch.cat([image, times], 1))))


def denoisers() -> dict[str, fkd.Model]:
    """A student that begins as its teacher does."""
    return {"student": fkd.trainable(Denoiser(4)), "teacher": fkd.frozen(Denoiser(4))}


def with_classes() -> dict[str, Tensor]:
    return images() | {"classes": torch.arange(4)}


def inverted():
    made = ref("images").param("pixels")
    seen = teacher.on(made)

    def unlike(x, mean, variance):
        axes = (0, 2, 3)
        return (x.mean(axes) - mean).norm() + (x.var(axes, correction=0) - variance).norm()

    def rough(x):
        return (x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum()).sqrt()

    return {
        "classes": term(cross_entropy, seen.logits, batch.classes),
        "statistics": [
            term(
                unlike, seen.tap(norm, "input"), teacher.param(f"{norm}.running_mean"),
                teacher.param(f"{norm}.running_var"), weight=0.01,
            )
            for norm in ("first.1", "second.1")
        ],
        "smooth": term(rough, made, weight=1e-4),
        "disagree": term(jsd, seen.logits, student.on(made).logits, weight=-0.2),
    }  # fmt: skip


def condensed():
    def slopes(net, image, labels):
        def loss(params):
            return cross_entropy(net.at(params)(image).logits, labels).mean()

        return torch.func.grad(loss)(dict(net.params))

    def apart(made, real):
        rows = [(a.reshape(len(a), -1), real[n].reshape(len(a), -1)) for n, a in made.items()]
        cosines = [torch.cosine_similarity(a, b, dim=-1) for a, b in rows]
        return torch.stack([(1 - cosine).sum() for cosine in cosines]).sum()

    network = module("network")
    real = call(slopes, network, batch.image, batch.labels)
    made = call(slopes, network, ref("images").param("pixels"), batch.classes)
    return {"slopes": term(apart, made, real)}


def halved():
    def at(t):
        return torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)

    def drawn(x, steps=4):  # of the student; the teacher takes two for each
        t = torch.randint(1, steps + 1, (len(x), 1, 1, 1), device=x.device) / steps
        return t, t - 0.5 / steps, t - 1 / steps, torch.randn_like(x)

    def noised(x, noise, t):
        alpha, sigma = at(t)
        return alpha * x + sigma * noise

    def moved(z, x, t, s):  # the step of DDIM from t to s, where x is predicted
        (a, b), (c, d) = at(t), at(s)
        return c * x + d / b * (z - a * x)

    def target(z, end, t, s):  # from which one step leads to where two have led
        (a, b), (c, d) = at(t), at(s)
        return (end - d / b * z) / (c - d / b * a)

    def truncated(x, wanted, t):
        alpha, sigma = at(t)
        weight = (alpha / sigma).square().clamp(min=1.0)
        return (weight * (x - wanted).square()).sum((1, 2, 3))

    t, middle, s, noise = (call(drawn, batch.image)[k] for k in range(4))
    z = call(noised, batch.image, noise, t)
    half = call(moved, z, teacher.on(z, t).logits, t, middle)
    end = call(moved, half, teacher.on(half, middle).logits, middle, s)
    return {"steps": term(truncated, student.on(z, t).logits, call(target, z, end, t, s), t)}


def consistent():
    def drawn(x, steps=18, least=0.002, most=80.0, rho=7.0):
        n = torch.randint(steps - 1, (len(x), 1, 1, 1), device=x.device)
        ends = least ** (1 / rho), most ** (1 / rho)
        times = [(ends[0] + k / (steps - 1) * (ends[1] - ends[0])) ** rho for k in (n, n + 1)]
        return *times, torch.randn_like(x)

    def model(name, x, t, sigma=0.5, least=0.002):
        early = sigma**2 / ((t - least).square() + sigma**2)
        inside = ref(name).on(x / torch.sqrt(t.square() + sigma**2), torch.log(t) / 4).logits
        return early * x + sigma * (t - least) / torch.sqrt(t.square() + sigma**2) * inside

    before, after, noise = (call(drawn, batch.image)[k] for k in range(3))
    late = batch.image + after * noise
    slope = (late - teacher.on(late, after).logits) / after
    early = late + (before - after) * slope

    return {
        "consistency": term(mse, model("student", late, after), model("average", early, before))
    }


def matched_distributions():
    def drawn(x):
        return 0.02 + 0.96 * torch.rand(len(x), 1, 1, 1, device=x.device), torch.randn_like(x)

    def noised(x, t, noise):
        return torch.cos(t * torch.pi / 2) * x + torch.sin(t * torch.pi / 2) * noise

    def towards(x, fake, real):  # its gradient by x is how the two scores differ
        scale = (x - real).abs().mean((1, 2, 3), keepdim=True)
        return 0.5 * (x - (x - (fake - real) / scale).detach()).square().mean((1, 2, 3))

    made = student.on(batch.noise, torch.ones(1, 1, 1, 1)).logits
    t, noise = (call(drawn, batch.noise)[k] for k in range(2))
    z = call(noised, made, t, noise)
    fake, real = (stop_gradient(m.on(z, t).logits) for m in (ref("fake"), teacher))
    learned = ref("fake").on(stop_gradient(z), t).logits
    paired = student.on(batch.start, torch.ones(1, 1, 1, 1)).logits
    return {
        "match": term(towards, made, fake, real, to="student"),
        "pairs": term(mse, paired, batch.end, to="student", weight=0.25),
        "fake": term(mse, learned, stop_gradient(made), to="fake"),
    }


def noises() -> dict[str, Tensor]:
    return {name: torch.randn(4, 3, 8, 8) for name in ("noise", "start", "end")}


RECIPES = [
    Recipe("DeepInversion", "arXiv:1912.08795", inverted,
           lambda: {"images": fkd.trainable(Pixels(4)), "teacher": fkd.frozen(CNN(6)),
                    "student": fkd.frozen(CNN(4))}, with_classes,
           "The pictures are what is trained: `fkd.trainable` of a module with one parameter. "
           "`teacher.on(pictures)` is read as a run on the batch is, taps before its batch "
           "normalisations included; the last term is the adaptive one, against a student."),
    Recipe("Dataset condensation", "arXiv:2006.05929", condensed,
           lambda: {"images": fkd.trainable(Pixels(4)), "network": fkd.trainable(CNN(4))},
           with_classes,
           "`net.at(params)` is a model at other parameters, and so its gradient is a function. "
           "`to=\"images\"` and a second term train the network along, in turns."),
    Recipe("Progressive distillation", "arXiv:2202.00512", halved, denoisers, images,
           "One step of the student for two of its teacher, with the cosine schedule and the "
           "truncated-SNR weight; then the student is the next teacher (`fkd.stages`)."),
    Recipe("Consistency distillation", "arXiv:2303.01469", consistent,
           lambda: {**denoisers(), "average": fkd.ema("student", decay=0.95)}, images,
           "One Euler step of the teacher from a time to the one before; the average says what the "
           "student is to say there."),
    Recipe("Distribution matching distillation", "arXiv:2311.18828", matched_distributions,
           lambda: {**denoisers(), "fake": fkd.trainable(Denoiser(4))}, noises,
           "A generator of one step, and a model of the noise of what it generates; pairs of noise "
           "and picture are made before, by the teacher."),
]  # fmt: skip
