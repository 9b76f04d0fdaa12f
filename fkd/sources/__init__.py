"""Where a teacher's values come from: one objective, its teacher live or kept on the disk, ahead of
the step or behind HTTP."""

from fkd._base.sparse import SampledDistribution as SampledDistribution
from fkd._base.sparse import SparseDistribution as SparseDistribution
from fkd._base.sparse import TopKDistribution as TopKDistribution
from fkd._objective.frontier import frontier as frontier

from ._ahead import Ahead as Ahead
from ._ahead import ahead as ahead
from ._bind import bind as bind
from ._cache import cache as cache
from ._errors import DamagedSourceError as DamagedSourceError
from ._errors import MissError as MissError
from ._errors import ServedError as ServedError
from ._errors import SourceError as SourceError
from ._keep import Exact as Exact
from ._keep import exact as exact
from ._kept import Kept as Kept
from ._kept import open as open
from ._live import live as live
from ._openai import Scored as Scored
from ._openai import sglang as sglang
from ._openai import vllm as vllm
from ._routed import Routed as Routed
from ._routed import routed as routed
from ._scaled import scaled as scaled
from ._served import Served as Served
from ._served import served as served
from ._server import Server as Server
from ._server import serve as serve
from ._source import Source as Source
from ._sparse import sampled as sampled
from ._sparse import top_k as top_k

__all__ = [
    "Ahead",
    "DamagedSourceError",
    "Exact",
    "Kept",
    "MissError",
    "Routed",
    "SampledDistribution",
    "Scored",
    "Served",
    "ServedError",
    "Server",
    "Source",
    "SourceError",
    "SparseDistribution",
    "TopKDistribution",
    "ahead",
    "bind",
    "cache",
    "exact",
    "frontier",
    "live",
    "open",
    "routed",
    "sampled",
    "scaled",
    "serve",
    "served",
    "sglang",
    "top_k",
    "vllm",
]
