"""An object of Python by the name that a user gives it in a shell."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .._base.errors import nearest


def named(target: str) -> Any:
    """The object that `package.module:name` or `folder/file.py:name` names.

    The current folder is looked into, as by `python -m`. A file is run as a module of its own
    name, with its folder on the path, as by `python file.py`.

    Raises:
      ValueError: there is no such module, file or name.
    """
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name:
        raise ValueError(
            f"{target!r} does not name an object; module:name or file.py:name is expected, such "
            "as 'objective.py:make'."
        )
    module = _file(Path(place)) if place.endswith(".py") else _module(place)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            have = [n for n in vars(module) if not n.startswith("_")]
            raise ValueError(f"{place} has no {name!r}. {nearest(name, have)}".rstrip())
        value = getattr(value, part)
    return value


def _module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise  # of something that the module itself imports
        raise ValueError(
            f"there is no module {name!r} here or on the path. A file is named by its path: "
            "folder/file.py:name."
        ) from None


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a file of Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # what it defines can be looked up again by its name
    spec.loader.exec_module(module)
    return module
