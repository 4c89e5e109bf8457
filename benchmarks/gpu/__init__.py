"""On a GPU: is what is trained there right, how fast is training, and what are fewer key-value heads worth?

bench.py     parts, each within its time; what they found, as JSON and as a section of results.md
sizes.py     what is trained and decoded
checks.py    GPU against CPU, resuming, bf16, verify
training.py  tokens per second, beside the fewest lines of torch
decoding.py  time per token, the cache, memory
"""
