"""Better models out of checkpoints already saved: linear combinations of them, whose coefficients are searched (LCSC).

Source: "Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better", arXiv 2404.02241.

series.py        which tensors are combined, and where each lies in a vector
store.py         the checkpoints as a matrix; sums of its rows
coefficients.py  those that need no search: last, averages, decayed rates
objective.py     what is to become smaller; draw.py: on which data
ledger.py        scores, counted against a budget and noted in a journal
gradient.py cma.py evolution.py at_random.py   the searches
judge.py         re-rank and report on data that the search never saw
find.py          all of it
"""
