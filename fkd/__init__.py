"""fkd: a functional, JAX-style library for knowledge distillation on PyTorch."""

from . import adapters as adapters
from . import gradients as gradients
from . import interop as interop
from . import loops as loops
from . import losses as losses
from . import metrics as metrics
from . import parallel as parallel
from . import schedules as schedules
from . import sources as sources
from . import stages as stages
from . import sweeps as sweeps
from ._base.errors import ObjectiveError as ObjectiveError
from ._base.mean import Mean as Mean
from ._base.mean import MeanWithParts as MeanWithParts
from ._base.mean import mean as mean
from ._base.version import __version__ as __version__
from ._check.check import check as check
from ._check.table import CheckReport as CheckReport
from ._draw.draw import Drawing as Drawing
from ._draw.draw import draw as draw
from ._objective.models import ema as ema
from ._objective.models import frozen as frozen
from ._objective.models import trainable as trainable
from ._objective.objective import Aux as Aux
from ._objective.objective import Objective as Objective
from ._objective.program import Parts as Parts
from ._objective.program import Program as Program
from ._objective.terms import Term as Term
from ._objective.terms import layer_map as layer_map
from ._objective.terms import metric as metric
from ._objective.terms import term as term
from ._refs.derived import call as call
from ._refs.derived import module as module
from ._refs.derived import stop_gradient as stop_gradient
from ._refs.refs import Context as Context
from ._refs.refs import ModelRef as ModelRef
from ._refs.refs import Ref as Ref
from ._refs.refs import batch as batch
from ._refs.refs import ref as ref
from ._refs.refs import student as student
from ._refs.refs import teacher as teacher

Report = CheckReport
"""The name of earlier versions."""

__all__ = [
    "Aux",
    "CheckReport",
    "Context",
    "Drawing",
    "Mean",
    "MeanWithParts",
    "ModelRef",
    "Objective",
    "ObjectiveError",
    "Parts",
    "Program",
    "Ref",
    "Report",
    "Term",
    "__version__",
    "adapters",
    "batch",
    "call",
    "check",
    "draw",
    "ema",
    "frozen",
    "gradients",
    "interop",
    "layer_map",
    "loops",
    "losses",
    "mean",
    "metric",
    "metrics",
    "module",
    "parallel",
    "ref",
    "schedules",
    "sources",
    "stages",
    "stop_gradient",
    "student",
    "sweeps",
    "teacher",
    "term",
    "trainable",
]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
