"""Grids of runs: named steps from folder to folder that share what they can, on this machine or on a Ray cluster."""
