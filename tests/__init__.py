"""The tests. The run-time type check is imported here, for it is looked up by its full name."""

from . import typecheck as typecheck
