"""Better models out of checkpoints already saved: linear combinations of them, whose coefficients are searched (LCSC).

Source: "Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better", arXiv 2404.02241.

config.py        the options of combine (imports nothing heavy)
series.py        which tensors are combined, and where each lies in a vector
groups.py        tensors that have coefficients of their own
restarts.py      whether a series is of one training
store.py         the checkpoints as a matrix; sums of its rows
candidate.py     one sum as a model sees it
coefficients.py  those that need no search: last, averages, decayed rates
draw.py          which data and which noise a score is of
objective.py     what is to become smaller
losses.py        the loss that a model's family is trained by, or another one
text.py          which text that is of
quality.py       how near samples come to real data
distances.py     Frechet, kernel, sliced Wasserstein, nearest
sampling.py      images of a denoiser by a scheduler of diffusers
images.py        a pipeline of diffusers and a folder of images
copies.py        a model for each thread
ledger.py        scores, counted against a budget and noted in a journal
problem.py       what a search is given
gradient.py      Adam on the coefficients
cma.py           CMA-ES
evolution.py     the paper's search
at_random.py     what every other one is held against
judge.py         re-rank and report on data that the search never saw
find.py          all of it
"""
