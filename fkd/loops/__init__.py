"""Steps and loops: the outer shell, where state is held and files are written."""

from ._checkpoint import load as load
from ._checkpoint import load_latest as load_latest
from ._checkpoint import save as save
from ._errors import CheckpointError as CheckpointError
from ._errors import LoopError as LoopError
from ._errors import NonFiniteError as NonFiniteError
from ._evaluate import collect as collect
from ._evaluate import evaluate as evaluate
from ._events import Event as Event
from ._events import Result as Result
from ._export import export as export
from ._optimizer import param_groups as param_groups
from ._report import report as report
from ._run import fit as fit
from ._run import run as run
from ._save import restore as restore
from ._signals import INTERRUPTED as INTERRUPTED
from ._signals import Interrupted as Interrupted
from ._similarity import linear_cka as linear_cka
from ._state import State as State
from ._state import fold_in as fold_in
from ._step import TrainStep as TrainStep
from ._step import train_step as train_step
