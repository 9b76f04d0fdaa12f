"""What the benchmarks share: interleaved timing, memory, FLOPs, machine in words, results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

Run = Callable[[], Any]
RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch", "transformers", "textbrewer", "KnowledgeDistillation", "liger-kernel", "trl",
    "torchdistill",
)  # fmt: skip


def arguments(about: str, **numbers: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have, and numbers of its own with their defaults."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    for name, default in {"rounds": 7, "threads": torch.get_num_threads(), **numbers}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="models under autocast")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for a machine with other work on it",
    )
    parser.add_argument("--name", help="of the result file, without .json; none is written if ''")
    return parser


def clock_of(options: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if options.clock == "cpu" else time.perf_counter


def finish(device: str) -> None:
    """Wait until the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def compare(
    make: Mapping[str, Callable[[], Run]], options: argparse.Namespace, *, baseline: str
) -> dict[str, dict[str, Any]]:
    """Median seconds of every variant, timed in turn, and ratios taken within each round.

    Args:
      make: name -> function that builds a variant and returns one step of it. A variant that
        raises is reported with its error, and the others go on.
      options: of `arguments`.
      baseline: the variant that ratios refer to: the time of a variant over the baseline's.
    """
    clock, device = clock_of(options), options.device
    found: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for name, build in make.items():
        start = time.perf_counter()
        try:
            run = build()
            run()
            finish(device)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
            continue
        found[name] = {"first_call_s": time.perf_counter() - start}
        run()
        runs[name] = run
        found[name]["peak_mib"] = peak_bytes(run, device) / 2**20
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(options.rounds):
        order = list(runs) if i % 2 == 0 else list(reversed(runs))
        for name in order:
            finish(device)
            start = clock()
            runs[name]()
            finish(device)
            times[name].append(clock() - start)
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[baseline], strict=True)]
        found[name].update(
            median_s=statistics.median(seconds),
            ratio=statistics.median(ratios),
            ratio_range=[min(ratios), max(ratios)],
        )
    return found


def peak_bytes(run: Run, device: str) -> int:
    """The most memory that one run holds above what was held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def needed_flops(build: Callable[[Any], Run]) -> int:
    """The FLOPs of the matrix products that remain in a compiled step: those it needs.

    Args:
      build: compile options -> one step.
    """
    found: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        # The inputs are fake: nothing is computed here.
        with FlopCounterMode(display=False, custom_mapping=_extra_flops()) as counter:
            graph(*inputs)
        found.append(counter.get_total_flops())
        return graph

    torch._dynamo.reset()
    build({"backend": aot_autograd(fw_compiler=count)})()
    torch._dynamo.reset()
    return sum(found)


def _extra_flops() -> dict[Any, Any]:
    """Attention on CPU, of which the counter knows nothing."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    def forward(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        del rest, out_shape, more
        return sdpa_flop_count(q, k, v)

    def backward(
        g: Any, q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **more: Any
    ) -> int:
        del rest, out_shape, more
        return sdpa_backward_flop_count(g, q, k, v)

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def gemm_rate(
    options: argparse.Namespace, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32
) -> float:
    """FLOPs per second of a bare matrix product of a shape, the median of several."""
    m, n, k = shape
    a = torch.randn(m, k, device=options.device, dtype=dtype)
    b = torch.randn(k, n, device=options.device, dtype=dtype)
    clock, seconds = clock_of(options), []
    repeats = max(1, int(2e9 / (2 * m * n * k)))
    for _ in range(7):
        finish(options.device)
        start = clock()
        for _ in range(repeats):
            a @ b
        finish(options.device)
        seconds.append((clock() - start) / repeats)
    return 2 * m * n * k / statistics.median(seconds)


def same(name: str, found: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float) -> str:
    """Assert that losses and gradients agree; says how closely.

    Args:
      name: of the variant.
      found: `{"loss": ..., parameter: gradient}`.
      expected: the same of the reference.
      tolerance: greatest norm of the difference over the norm of the expected value (for a
        gradient, over a thousandth of the greatest one's at least: that by the bias of keys is
        rounding and nothing else).
    """
    if found.keys() != expected.keys():
        missing = sorted(found.keys() ^ expected.keys())[:4]
        raise SystemExit(f"{name}: gradients of other parameters: {missing}")
    norms = {k: float(e.float().norm()) for k, e in expected.items()}
    least = 1e-3 * max(norm for k, norm in norms.items() if k != "loss")
    errors = {
        k: float((found[k].float() - e.float()).norm()) / max(norms[k], 0 if k == "loss" else least)
        for k, e in expected.items()
    }
    worst = max(errors, key=lambda k: errors[k])
    if not errors[worst] <= tolerance:
        raise SystemExit(f"{name}: {worst} differs by {errors[worst]:.1e}: not the same work")
    return f"{name}: loss and {len(expected) - 1} gradients agree to {errors[worst]:.0e}"


def table(rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a table of Markdown: `{column: format}`."""
    lines = ["| variant | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} |")
            continue
        cells = [
            f"{row[c]:{form}}" if row.get(c) is not None else "" for c, form in columns.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


COLUMNS = {"median_s": ".4f", "ratio": ".2f", "peak_mib": ".0f", "first_call_s": ".1f"}


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """The machine in words, and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    return {
        "device": gpu or f"CPU {_cpu()}, {os.cpu_count()} cores, {options.threads} threads used",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "clock": "processor time" if options.clock == "cpu" else "wall time",
        "versions": versions,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def write(name: str, options: argparse.Namespace, results: Any, notes: list[str]) -> None:
    """Write `results/<name>.json`, unless the name is empty."""
    name = name if options.name is None else options.name
    if not name:
        return
    settings = {k: v for k, v in vars(options).items() if k != "name"}
    content = {
        "benchmark": name,
        "machine": machine(options),
        "settings": settings,
        "notes": notes,
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
