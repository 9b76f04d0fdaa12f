"""TensorBoard events. The one file that imports tensorboard, when a writer is opened."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

_NOT_VALUES = ("step", "time", "kind", "epoch")


class TensorBoard:
    """Writes the events of a run.

    Args:
      folder: of the events.
      first_step: TensorBoard drops the points of this step and later ones that an earlier
        process left in the folder, so that a resumed run does not show points twice.
    """

    def __init__(self, folder: Path, *, first_step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "open_log: tensorboard is not installed. Install fkd[tensorboard], or pass "
                "tensorboard=False."
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, record: Mapping[str, Any]) -> None:
        """One scalar for each value; other kinds than "train" are a group of tags."""
        kind = record["kind"]
        prefix = "" if kind == "train" else f"{kind}/"
        for name, value in record.items():
            if name not in _NOT_VALUES:
                tag = name if name.startswith(prefix) else prefix + name
                self._writer.add_scalar(tag, value, record["step"], record["time"])
        if "epoch" in record:
            self._writer.add_scalar("epoch", record["epoch"], record["step"], record["time"])
        self._writer.flush()  # a killed run keeps what it logged

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """A row of HPARAMS and a table in TEXT."""
        from torch.utils.tensorboard.summary import hparams

        flat = dict(_flatten(values))
        simple = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in flat.items()}
        for event in hparams(simple, {}):
            # SummaryWriter.add_hparams would open a second run for them.
            self._writer._get_file_writer().add_summary(event)  # pyright: ignore
        rows = "\n".join(f"| {k} | {str(v).replace('|', '&#124;')} |" for k, v in flat.items())
        self._writer.add_text("hyperparameters", f"| name | value |\n| --- | --- |\n{rows}")
        self._writer.flush()

    def text(self, name: str, text: str) -> None:
        """A text that keeps its columns."""
        indented = "\n".join("    " + line for line in text.splitlines())
        self._writer.add_text(name, indented)
        self._writer.flush()

    def graph(self, edges: Iterable[tuple[str, str]]) -> None:
        """Nodes and arrows in GRAPHS; "/" in a name makes a group that can be opened."""
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.compat.proto.graph_pb2 import GraphDef  # pyright: ignore
        from tensorboard.compat.proto.node_def_pb2 import NodeDef  # pyright: ignore

        inputs: dict[str, list[str]] = {}
        for source, target in edges:
            inputs.setdefault(source, [])
            inputs.setdefault(target, []).append(source)
        nodes = [NodeDef(name=name, op=name.split("/")[0], input=i) for name, i in inputs.items()]
        event = Event(graph_def=GraphDef(node=nodes).SerializeToString())
        self._writer._get_file_writer().add_event(event)  # pyright: ignore
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _flatten(values: Any, path: str = "") -> Generator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flatten(value, f"{path}/{key}" if path else str(key))
    elif not isinstance(values, float) or math.isfinite(values):
        yield path, values
    else:
        yield path, repr(values)
