"""What a method promises about its child, before any byte is written; `verify` holds it to this."""

from __future__ import annotations

from dataclasses import dataclass

EXACT = 1e-5  # largest |difference of logits| / largest |logit|, both sides in float32


@dataclass(frozen=True)
class Promise:
    kind: str  # "exact" or "lossy"
    text: str

    @property
    def exact(self) -> bool:
        return self.kind == "exact"


def exact(text: str = "the child computes the parent's function") -> Promise:
    return Promise("exact", text)


def lossy(text: str) -> Promise:
    """A child that differs by design; verify reports by how much, and breaks only on NaN."""
    return Promise("lossy", text)
