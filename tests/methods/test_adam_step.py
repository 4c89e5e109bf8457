"""The table of docs/architecture.md: what one Adam step does to a parent and to its child, measured row by row."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from adam_step import one_step_apart

from rekindle.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
ROWS = re.findall(r"^\| (\w+) \| `rekindle ([^`]+)` \| (\S+) \| (\S+) \| (\S+) \|$", PAGE.read_text(), re.MULTILINE)


def options_of(words: list[str]) -> dict[str, object]:
    """--noise 0 --noise-router: {"noise": "0", "noise_router": True}"""
    options: dict[str, object] = {}
    for word in words:
        if word.startswith("--"):
            options[word[2:].replace("-", "_")] = True
        else:
            options[list(options)[-1]] = word
    return options


def agrees(cell: str, measured: float) -> bool:
    """Written as a bound, or with one digit that other machines' rounding may move."""
    return measured < float(cell[1:]) if cell.startswith("<") else 1 / 2 < measured / float(cell) < 2


@pytest.mark.parametrize(("family", "command", "before", "after", "step"), ROWS)
def test_one_step_apart_as_the_page_says(tiny, tmp_path, family, command, before, after, step):
    verb, *words = shlex.split(command)
    apart = one_step_apart(tiny(family), verb, tmp_path, **options_of(words))
    found = " | ".join(f"{x:.0e}" for x in apart)
    said = (before, after, step)
    assert all(map(agrees, said, apart)), f"the page says {said} of {family}, {command}: measured {found}"


def test_every_method_has_a_row():
    """But for those of several: of several parents none is the one whose step the child would take."""
    several = {verb for verb, method in METHODS.items() if method.takes == "models"}
    assert {command.split()[0] for _, command, *_ in ROWS} == set(METHODS) - several


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "deepseek_v3"])
@pytest.mark.parametrize("options", [{"factor": 2}, {"factor": 3}])
def test_noise_free_growth_takes_the_parents_step(tiny, tmp_path, family, options):
    apart = one_step_apart(tiny(family), "grow-experts", tmp_path, noise=0, **options)
    assert apart.after < 1e-5
    assert apart.step > 1e-3
