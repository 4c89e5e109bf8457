"""Which Rekindle this is; what it writes says so."""

__version__ = "0.1.0"
