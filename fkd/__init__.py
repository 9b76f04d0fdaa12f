"""fkd: a functional, JAX-style library for knowledge distillation on PyTorch."""

from . import losses as losses
from . import schedules as schedules
from ._apply import ema as ema
from ._apply import frozen as frozen
from ._apply import trainable as trainable
from ._errors import ObjectiveError as ObjectiveError
from ._mean import Mean as Mean
from ._mean import mean as mean
from ._objective import Aux as Aux
from ._objective import Objective as Objective
from ._objective import Parts as Parts
from ._refs import Context as Context
from ._refs import Ref as Ref
from ._refs import batch as batch
from ._refs import call as call
from ._refs import module as module
from ._refs import ref as ref
from ._refs import stop_gradient as stop_gradient
from ._refs import student as student
from ._refs import teacher as teacher
from ._terms import Term as Term
from ._terms import layer_map as layer_map
from ._terms import metric as metric
from ._terms import term as term
