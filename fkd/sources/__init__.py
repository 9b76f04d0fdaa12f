"""Where a teacher's values come from: one objective, its teacher live or kept on the disk, ahead of
the step or behind HTTP."""

from ._ahead import Ahead as Ahead
from ._ahead import ahead as ahead
from ._bind import bind as bind
from ._cache import Exact as Exact
from ._cache import cache as cache
from ._cache import exact as exact
from ._errors import DamagedSourceError as DamagedSourceError
from ._errors import MissError as MissError
from ._errors import ServedError as ServedError
from ._errors import SourceError as SourceError
from ._frontier import frontier as frontier
from ._kept import Kept as Kept
from ._kept import open as open
from ._live import live as live
from ._served import Served as Served
from ._served import served as served
from ._server import Server as Server
from ._server import serve as serve
from ._source import Source as Source

__all__ = [
    "Ahead",
    "DamagedSourceError",
    "Exact",
    "Kept",
    "MissError",
    "Served",
    "ServedError",
    "Server",
    "Source",
    "SourceError",
    "ahead",
    "bind",
    "cache",
    "exact",
    "frontier",
    "live",
    "open",
    "serve",
    "served",
]
