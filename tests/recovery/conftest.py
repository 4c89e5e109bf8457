"""The corpus and the small models of the tests of training."""

from train.conftest import cache, corpus, small

__all__ = ["cache", "corpus", "small"]
