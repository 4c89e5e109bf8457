"""Scaling laws: published ones as data, decisions with intervals, and fits of your own runs. Imports no torch."""
