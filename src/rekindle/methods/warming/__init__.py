"""A warm start's halves, what they may have as one, and the paper's variants."""
