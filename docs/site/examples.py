"""A griffe extension: `Example:` is the section of programs that it calls `Examples:`."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the heading, so that what follows is shown as a program, not as prose."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """For every object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )
