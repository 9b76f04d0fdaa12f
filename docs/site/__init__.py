"""Makes the documentation: `python -m docs.site`."""
