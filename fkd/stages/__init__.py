"""Several objectives in a row, as one run."""

from ._joint import Stage as Stage
from ._joint import stage as stage
from ._stages import Stages as Stages
from ._stages import stages as stages

__all__ = ["Stage", "Stages", "stage", "stages"]
