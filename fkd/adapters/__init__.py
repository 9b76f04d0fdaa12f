"""Learnable pieces that some methods put between the two models. Small modules, no losses.

Give one to an objective with `fkd.trainable(...)` and name it with `fkd.module(...)`.
"""

from ._context import GlobalContext as GlobalContext
from ._context import NonLocal as NonLocal
from ._convolution import ConvRegressor as ConvRegressor
from ._convolution import SimKDProjector as SimKDProjector
from ._convolution import SRRLConnector as SRRLConnector
from ._cross_layer import AFDAttention as AFDAttention
from ._cross_layer import ChannelAttention as ChannelAttention
from ._cross_layer import PairProjections as PairProjections
from ._cross_layer import SemCKDAttention as SemCKDAttention
from ._dual_space import CrossModelAttention as CrossModelAttention
from ._factor import Paraphraser as Paraphraser
from ._factor import Translator as Translator
from ._generation import MaskedGenerator as MaskedGenerator
from ._generation import TokenGenerator as TokenGenerator
from ._heads import DINOHead as DINOHead
from ._projection import LayerAttention as LayerAttention
from ._projection import LinearProjection as LinearProjection
from ._projection import MLPProjection as MLPProjection
from ._projection import OrthogonalProjector as OrthogonalProjector
from ._review import ReviewFusion as ReviewFusion
from ._temperature import InstanceTemperature as InstanceTemperature
from ._temperature import LearnableTemperature as LearnableTemperature
from ._temperature import StudentTemperature as StudentTemperature
from ._variance import PADVariance as PADVariance
from ._variance import VarianceHead as VarianceHead

__all__ = [
    "AFDAttention",
    "ChannelAttention",
    "ConvRegressor",
    "CrossModelAttention",
    "DINOHead",
    "GlobalContext",
    "InstanceTemperature",
    "LayerAttention",
    "LearnableTemperature",
    "LinearProjection",
    "MLPProjection",
    "MaskedGenerator",
    "NonLocal",
    "OrthogonalProjector",
    "PADVariance",
    "PairProjections",
    "Paraphraser",
    "ReviewFusion",
    "SRRLConnector",
    "SemCKDAttention",
    "SimKDProjector",
    "StudentTemperature",
    "TokenGenerator",
    "Translator",
    "VarianceHead",
]
