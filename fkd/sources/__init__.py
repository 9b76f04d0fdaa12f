"""Where a teacher's values come from: one objective, its teacher live or kept on the disk.

A served teacher (over HTTP), one that runs batches ahead of the step, and several teachers that
are chosen by sample are not there yet; nor is a cache of less than all numbers (top-k, samples).
"""

from ._bind import bind as bind
from ._cache import Exact as Exact
from ._cache import cache as cache
from ._cache import exact as exact
from ._errors import DamagedSourceError as DamagedSourceError
from ._errors import MissError as MissError
from ._errors import SourceError as SourceError
from ._frontier import frontier as frontier
from ._kept import Kept as Kept
from ._kept import open as open
from ._live import live as live
from ._source import Source as Source

__all__ = [
    "DamagedSourceError",
    "Exact",
    "Kept",
    "MissError",
    "Source",
    "SourceError",
    "bind",
    "cache",
    "exact",
    "frontier",
    "live",
    "open",
]
