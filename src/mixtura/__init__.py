"""Mixtura: one text-to-text model, many tasks, any number of machines."""

__version__ = "0.1.0"
