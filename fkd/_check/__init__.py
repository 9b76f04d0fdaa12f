"""The dry run: every mistake of an objective, before anything is computed."""
