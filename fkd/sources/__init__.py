"""Where a teacher's values come from: one objective, its teacher live or kept on the disk.

A served teacher (over HTTP), one that runs batches ahead of the step, and several teachers that
are chosen by sample are not there yet.
"""

from ._bind import bind as bind
from ._errors import DamagedSourceError as DamagedSourceError
from ._errors import MissError as MissError
from ._errors import SourceError as SourceError
from ._frontier import frontier as frontier
from ._live import live as live
from ._source import Source as Source

__all__ = [
    "DamagedSourceError",
    "MissError",
    "Source",
    "SourceError",
    "bind",
    "frontier",
    "live",
]
