"""What a method promises about its child, before any byte is written; `verify` holds it to this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EXACT = 1e-5  # largest |difference of logits| / largest |logit|, both sides in float32


@dataclass(frozen=True)
class Promise:
    kind: str  # "exact" or "lossy"
    text: str
    halves: Mapping[str, str] = field(default_factory=dict)  # of several sources: the kind for what each became

    @property
    def exact(self) -> bool:
        return self.kind == "exact"

    def to_dict(self) -> dict[str, str]:
        return {"kind": self.kind, "text": self.text, **self.halves}


def exact(text: str = "the child computes the parent's function") -> Promise:
    return Promise("exact", text)


def lossy(text: str, halves: Mapping[str, str] | None = None) -> Promise:
    """A child that differs by design; verify reports by how much, and breaks only on NaN."""
    return Promise("lossy", text, halves or {})
