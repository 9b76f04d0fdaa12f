"""Scripts of the KnowledgeDistillation package, on fkd's compiled objective.

Change the imports and keep the rest of the script:

    from fkd.interop.knowledge_distillation import (
        KnowledgeDistiller,
        MultiLayerBasedDistillationEvaluator,
        MultiLayerBasedDistillationLoss,
    )

The rules are those of that package: every item of the config is one loss between an output of
the teacher and one of the student, times its weight, summed; teachers in eval mode without
gradients; one update and one call of the evaluator for every batch. To go on in fkd's own
style, `terms_from_config(config)` gives the terms that a config stands for.
"""

from ._adapt import Adapted as Adapted
from ._config import terms_from_config as terms_from_config
from ._distiller import KnowledgeDistiller as KnowledgeDistiller
from ._evaluator import Evaluator as Evaluator
from ._evaluator import IEvaluator as IEvaluator
from ._evaluator import MultiLayerBasedDistillationEvaluator as MultiLayerBasedDistillationEvaluator
from ._loss_model import MultiLayerBasedDistillationLoss as MultiLayerBasedDistillationLoss
from ._losses import attention_mse_with_mask as attention_mse_with_mask
from ._losses import cos as cos
from ._losses import cross_entropy as cross_entropy
from ._losses import mse as mse
from ._losses import mse_with_mask as mse_with_mask

__all__ = [
    "Adapted",
    "Evaluator",
    "IEvaluator",
    "KnowledgeDistiller",
    "MultiLayerBasedDistillationEvaluator",
    "MultiLayerBasedDistillationLoss",
    "attention_mse_with_mask",
    "cos",
    "cross_entropy",
    "mse",
    "mse_with_mask",
    "terms_from_config",
]
