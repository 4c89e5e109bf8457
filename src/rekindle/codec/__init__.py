"""Checkpoint series made small: each checkpoint coded against the one before, in one file, every bit kept."""
