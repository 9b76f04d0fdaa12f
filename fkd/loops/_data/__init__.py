"""Batches: their form, their order, their copies on the device."""
