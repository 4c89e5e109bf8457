"""Run a plan (copy, stream, resume), verify the result."""
