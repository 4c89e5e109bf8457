"""Recycle trained checkpoints. Every verb of the command line is a function here; see `rekindle.api`."""

__version__ = "0.1.0"
