"""Published methods as terms of an objective, tested: what the site shows is what the tests run.

One family a file; each has `RECIPES`, a list. A new file is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ._recipe import Recipe

FILES: tuple[ModuleType, ...] = tuple(
    importlib.import_module(f"{__name__}.{found.name}")
    for found in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name)
    if not found.name.startswith("_")
)
"""The files with recipes, by name."""

RECIPES: tuple[Recipe, ...] = tuple(recipe for file in FILES for recipe in file.RECIPES)
"""All recipes."""

__all__ = ["FILES", "RECIPES", "Recipe"]
