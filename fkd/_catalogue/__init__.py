"""The losses and adapters as a catalogue: read from their docstrings, searched, printed."""
