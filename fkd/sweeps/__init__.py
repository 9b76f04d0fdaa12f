"""Several runs that differ in numbers, on one forward pass of their teacher."""

from ._member import Member as Member
from ._member import member as member
from ._sweep import Sweep as Sweep
from ._sweep import sweep as sweep

__all__ = ["Member", "Sweep", "member", "sweep"]
