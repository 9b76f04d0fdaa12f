"""What can go wrong with a source."""

from __future__ import annotations


class SourceError(ValueError):
    """A source cannot be made, read, or used here; the message says why."""


class DamagedSourceError(SourceError):
    """A source on the disk is not, byte for byte, what was written; names the file."""


class MissError(SourceError, LookupError):
    """A source does not have the values of a sample; names the sample."""


class ServedError(SourceError):
    """A server does not answer as it should; says which, how often it was asked, and what it
    said. Nothing that it said of the batch was used."""
