"""How several checkpoints become one: each way in a file of its own, as a function of one tensor of each.

A way gives the expression of the child's tensor out of the sources' tensors `xs`, and what it needs besides: their
weights, the base's tensor, its options.
"""
