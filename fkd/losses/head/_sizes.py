"""How many tokens at a time: large enough for the matrix products, small enough to fit."""

from __future__ import annotations

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
      budget: bytes for one chunk's logits of both models; by default 128 MiB on a CPU and
        1 GiB on an accelerator.

    Returns:
      A number of tokens from 1 to `tokens` (1 if there are none).

    Example:
      >>> from fkd.losses import head
      >>> head.chunk_tokens(8192, 128256, device="cuda", dtype=torch.bfloat16)
      2048
    """
    kind = torch.device(device).type
    budget = budget or _BUDGET.get(kind, _BUDGET["cuda"])
    fitting = budget // (2 * vocab * dtype.itemsize)
    # No more than 64 chunks: compiled, each is a copy of the graph.
    limit = max(min(max(fitting, 256), 4096), -(-tokens // 64))
    chunks = max(1, -(-tokens // limit))
    even = -(-tokens // chunks)
    return max(1, min(tokens, -(-even // 64) * 64))


def block_rows(chunk: int, vocab: int, device: torch.device) -> int:
    """Rows whose logits stay in a cache through the elementwise work on them."""
    if torch.compiler.is_compiling():  # the compiler fuses that work by itself
        return chunk
    return max(1, min(chunk, _BLOCK.get(device.type, _BLOCK["cuda"]) // vocab))
