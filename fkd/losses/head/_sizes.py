"""How many tokens at a time: large enough for the matrix products, small enough to fit."""

from __future__ import annotations

import contextlib
import os

import torch

_BUDGET = {"cpu": 2**27, "cuda": 2**30}
_BLOCK = {"cpu": 2**18, "cuda": 2**25}


def chunk_tokens(
    tokens: int,
    vocab: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    budget: int | None = None,
) -> int:
    """Tokens in a chunk, such that the logits of both models fit a budget of memory.

    The weights are read once a chunk, so the products are slow if it has fewer than a few
    hundred tokens; more than 4096 gain nothing. All chunks but the last have one size.

    Args:
      tokens: positions in the batch.
      vocab: entries of the (shared) vocabulary.
      device: where the logits live.
      dtype: of the logits.
      budget: bytes for one chunk's logits of both models; by default `chunk_budget(device)`.

    Returns:
      A number of tokens from 1 to `tokens` (1 if there are none).

    Example:
      >>> from fkd.losses import head
      >>> head.chunk_tokens(8192, 128256, device="cuda", dtype=torch.bfloat16)
      2048
    """
    budget = budget or chunk_budget(str(device))
    fitting = budget // (2 * vocab * dtype.itemsize)
    # No more than 64 chunks: compiled, each is a copy of the graph.
    limit = max(min(max(fitting, 256), 4096), -(-tokens // 64))
    chunks = max(1, -(-tokens // limit))
    even = -(-tokens // chunks)
    return max(1, min(tokens, -(-even // 64) * 64))


@torch.compiler.assume_constant_result
def chunk_budget(device: str) -> int:
    """Bytes for one chunk's logits of both models: 128 MiB on a CPU, 1 GiB on an accelerator.

    Less only where a quarter of the free memory is less than that, and then a power of two: the
    size of the chunks is the order of the sums, so a run that is resumed on a machine with other
    work on it should still have the same bits. Read once by compiled code, while tracing.

    Example:
      >>> from fkd.losses import head
      >>> head.chunk_budget("cpu") <= 2**27
      True
    """
    place = torch.device(device)
    usual = usual_budget(place)
    free = _free_memory(place)
    return (
        usual if free is None or free // 4 >= usual else 1 << max(20, (free // 4).bit_length() - 1)
    )


def usual_budget(device: torch.device) -> int:
    """Bytes for one chunk's logits of both models, where enough memory is free."""
    return _BUDGET.get(device.type, _BUDGET["cuda"])


def _free_memory(device: torch.device) -> int | None:
    """Bytes that could still be allocated, the allocator's own unused ones included."""
    if device.type == "cuda" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not on every system
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def block_rows(chunk: int, vocab: int, device: torch.device) -> int:
    """Rows whose logits stay in a cache through the elementwise work on them."""
    if torch.compiler.is_compiling():  # the compiler fuses that work by itself
        return chunk
    return max(1, min(chunk, _BLOCK.get(device.type, _BLOCK["cuda"]) // vocab))
