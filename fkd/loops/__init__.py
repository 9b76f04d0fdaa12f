"""Steps and loops: the outer shell, where state is held and files are written."""

from ._optimizer import param_groups as param_groups
from ._state import State as State
from ._state import fold_in as fold_in
from ._step import TrainStep as TrainStep
from ._step import train_step as train_step
