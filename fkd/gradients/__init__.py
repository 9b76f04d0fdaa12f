"""What an optimizer receives, as a function of the gradients of the terms."""

from ._balance import GradNorm as GradNorm
from ._balance import grad_norm as grad_norm
from ._combination import Combination as Combination
from ._combination import Gradient as Gradient
from ._combination import together as together
from ._geometry import ConflictFree as ConflictFree
from ._geometry import MinNorm as MinNorm
from ._geometry import PCGrad as PCGrad
from ._geometry import conflict_free as conflict_free
from ._geometry import min_norm as min_norm
from ._geometry import pcgrad as pcgrad
from ._momenta import Momenta as Momenta
from ._momenta import dot as dot
from ._momenta import momenta as momenta

__all__ = [
    "Combination",
    "ConflictFree",
    "GradNorm",
    "Gradient",
    "MinNorm",
    "Momenta",
    "PCGrad",
    "conflict_free",
    "dot",
    "grad_norm",
    "min_norm",
    "momenta",
    "pcgrad",
    "together",
]
