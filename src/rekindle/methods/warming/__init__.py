"""A warm start's halves, what they may have as one, the tokens that bound a text, and the paper's variants."""
