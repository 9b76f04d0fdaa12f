"""Boundaries: transformers, KnowledgeDistillation, other people's loops, torchao, ONNX, loggers.

Each is imported when it is first used: `fkd.interop.modules.bind(objective)`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import knowledge_distillation as knowledge_distillation
    from . import loggers as loggers
    from . import modules as modules
    from . import onnx as onnx
    from . import torchao as torchao
    from . import transformers as transformers
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"fkd.interop has no {name!r}; it has {', '.join(__all__)}.")
        return importlib.import_module(f"{__name__}.{name}")


__all__ = ["knowledge_distillation", "loggers", "modules", "onnx", "torchao", "transformers"]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
