"""What the runs say: curves, costs and a verdict on one HTML page, and a model card for each checkpoint.

Reads only what other verbs left in the folders (`rekindle.json`, `metrics.jsonl`, `verify.json`), no model.
`page` makes the pages, `card` the cards.
"""
