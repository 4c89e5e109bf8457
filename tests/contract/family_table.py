"""What each method does to each family, by doing it to tiny models: docs/methods/README.md. `make docs` runs it.

A cell is measured: the method is applied, the result saved, reloaded in transformers and compared with its parent.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import save_tiny

from rekindle import api
from rekindle.anatomy import FAMILIES
from rekindle.errors import RekindleError
from rekindle.methods import method_named

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "README.md"

# verb -> {what it is called in the table: its options}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "upcycle": {
        "copy": {"experts": 4},
        "noise": {"experts": 4, "init": "noise"},
        "drop": {"experts": 4, "init": "drop"},
        "virtual groups": {"experts": 4, "init": "virtual-group", "granularity": 2},
        "spread": {"experts": 4, "init": "virtual-group", "granularity": 2, "scale": "spread"},
        "shared": {"experts": 4, "shared_experts": 1},
    },
    "grow-depth": {
        "interpose": {"factor": 2, "order": "interpose"},
        "stack": {"factor": 2, "order": "stack"},
        "llama-pro": {"factor": 2, "order": "llama-pro"},
        "solar": {"layers": 4, "order": "solar"},
    },
    "grow-experts": {
        "exact copies": {"factor": 2, "noise": 0.0},
        "1 % noise": {"factor": 2, "noise": 0.01},
        "top-k kept": {"factor": 2, "top_k": "keep", "noise": 0.0},
    },
    "gqa": {
        "to all heads": {"kv_heads": 4},
        "mean": {"kv_heads": 1, "pool": "mean"},
        "first": {"kv_heads": 1, "pool": "first"},
        "aligned": {"kv_heads": 1, "pool": "aligned"},
    },
    "rewrite": {"same dtype": {}, "bfloat16": {"dtype": "bfloat16"}},
    "repair": {"layer 1": {"lost": "layers:1"}, "layers 0, 1": {"lost": "layers:0-1"}},
    "merge": {  # with a second one of the same shape, the parent first
        "weights 1, 0": {"weights": ("1", "0")},
        "linear": {},
        "slerp": {"how": "slerp"},
        "karcher": {"how": "karcher"},
    },
}


class Cell(NamedTuple):
    kind: str  # "exact", "lossy" or "refused"
    jump: float  # max |difference| / max |output| of the tiny models, float32
    reason: str  # of a refusal


def measure(family: str, verb: str, options: dict[str, Any], parent: Path, other: Path, out: Path) -> Cell:
    try:
        takes = method_named(verb).takes
        towers = {"tower": "both"} if takes == "tower" and FAMILIES[family].towers else {}
        model = api.apply(verb, [parent, other] if takes == "models" else parent, **options, **towers)
    except RekindleError as error:
        because = f" ({error.why.splitlines()[0].rstrip('.')})" if error.why else ""
        return Cell("refused", 0.0, error.what.splitlines()[0] + because)
    verdict = api.verify(model.save(out), against=parent, tokens=128)
    assert verdict.held, (family, verb, options, verdict)
    return Cell(verdict.promise, verdict.relative_difference, "")


def row(family: str, tiny: Callable[..., Path], work: Path) -> dict[tuple[str, str], Cell]:
    """Every variant of every method on one family."""
    return {
        (verb, name): measure(family, verb, options, tiny(family), tiny(family, seed=1), work / f"{family}-{verb}-{i}")
        for verb, variants in VARIANTS.items()
        for i, (name, options) in enumerate(variants.items())
    }


HEAD = """# Methods and families

Written by `make docs`: every cell was measured, by applying the method to a tiny random model of the family, saving
and reloading it in transformers. **exact**: the outputs agree to 1e-5 of the largest in float32. A number: lossy, and
this is by how much, max |difference| / max |output|; tiny random models exaggerate it, `rekindle verify` measures
yours. A letter: refused, for the reason below the table. Of an encoder with a decoder, both are changed.
"""


def page(rows: dict[str, dict[tuple[str, str], Cell]]) -> str:
    parts = [HEAD]
    for verb, variants in VARIANTS.items():
        reasons: dict[str, str] = {}
        lines = [f"## [{verb}]({verb}.md)\n", "| family | " + " | ".join(variants) + " |"]
        lines.append("|---" * (len(variants) + 1) + "|")
        for family, cells in rows.items():
            shown = [_shown(cells[verb, name], family, reasons) for name in variants]
            lines.append(f"| `{family}` | " + " | ".join(shown) + " |")
        parts.append("\n".join(lines) + "\n")
        if reasons:
            parts.append("\n".join(f"* {letter}: {reason}" for reason, letter in reasons.items()) + "\n")
    return "\n".join(parts)


def _shown(cell: Cell, family: str, reasons: dict[str, str]) -> str:
    if cell.kind == "refused":
        reason = re.sub(rf"\b{family}\b", "FAMILY", cell.reason)
        return reasons.setdefault(reason, chr(ord("a") + len(reasons)))
    return "exact" if cell.kind == "exact" else f"{cell.jump:.2g}"


def everything(tiny: Callable[..., Path], work: Path) -> str:
    return page({family: row(family, tiny, work) for family in FAMILIES})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)

        def make(family: str, seed: int = 0) -> Path:
            made = work / f"tiny-{family}-{seed}"
            return made if made.exists() else save_tiny(made, family, "float32", False, {}, seed)

        PAGE.write_text(everything(make, work), encoding="utf-8")
