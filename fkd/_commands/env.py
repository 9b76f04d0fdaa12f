"""`python -m fkd env`: what a bug report needs to say about a machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from .._base.version import __version__
from .command import Command

NEEDED = ("torch", "optree", "filelock", "jaxtyping", "safetensors", "tqdm", "numpy")
OPTIONAL = (
    "transformers", "tensorboard", "triton", "torchao", "peft", "accelerate", "lightning",
    "datasets", "torchmetrics",
)  # fmt: skip
VARIABLES = (
    "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "HF_HOME",
)  # fmt: skip


def environment() -> dict[str, dict[str, Any]]:
    """Versions, devices, settings and caches, by section."""
    return {
        "versions": {"fkd": __version__, "python": platform.python_version(), **_versions()},
        "machine": {
            "system": platform.platform(),
            "processors": os.cpu_count(),
            "threads of torch": torch.get_num_threads(),
            "devices": _devices() or "no accelerator: the CPU alone",
        },
        "settings": {
            "float32 products": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            **{name: os.environ[name] for name in VARIABLES if name in os.environ},
        },
        "caches": _caches(),
    }


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in (*NEEDED, *OPTIONAL):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "MISSING" if name in NEEDED else "not installed"
    return versions


def _devices() -> list[str]:
    if torch.cuda.is_available():
        places = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [
            f"cuda:{i} {p.name}, {p.total_memory / 2**30:.0f} GiB, capability {p.major}.{p.minor}"
            for i, p in enumerate(places)
        ]
    return ["mps"] if torch.backends.mps.is_available() else []


def _caches() -> dict[str, Any]:
    """Where torch keeps what it compiled, and how much that is."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir())
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    size = sum(path.stat().st_size for path in files)
    return {"compiled code": f"{folder} ({size / 2**20:.0f} MiB in {len(files)} files)"}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs, not for people")


def _run(arguments: argparse.Namespace) -> int:
    sections = environment()
    if arguments.json:
        json.dump(sections, sys.stdout, indent=2)
        print()
        return 0
    width = max(len(name) for section in sections.values() for name in section)
    for title, section in sections.items():
        print(title)
        for name, value in section.items():
            text = "\n".join(value) if isinstance(value, list) else str(value)
            print(f"  {name:<{width}}  " + text.replace("\n", "\n" + " " * (width + 4)))
    return 0


COMMAND = Command("versions, devices, settings and caches of this machine", _arguments, _run)
