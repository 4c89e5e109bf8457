"""Numbers and lists as people write them; the page, the pictures and the verdict share these."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ILLIONS = {3: "thousand", 6: "million", 9: "billion", 12: "trillion"}
UNKNOWN = "–"


def count(value: float | None) -> str:
    """A number of tokens or parameters in three digits: 3.00M, 412k, 87."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            return f"{_three_digits(value / size)}{unit}"
    return f"{value:.0f}"


def power(exponent: int) -> str:
    """×10¹²; empty for 10⁰."""
    return f"×10{str(exponent).translate(_SUPERSCRIPTS)}" if exponent else ""


def scientific(value: float | None, digits: int = 2) -> str:
    """1.8×10¹³; plain digits between 0.01 and 10,000."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0 or 0.01 <= abs(value) < 1e4:
        return f"{value:.{digits + 1}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}{power(int(exponent))}"


def exponent_of(values: Iterable[float]) -> int:
    """The power of 1000, as an exponent of ten, in which the largest of `values` reads best."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return 3 * math.floor(math.log10(largest) / 3 + 1e-9) if largest > 0 else 0


def unit(exponent: int, of: str) -> str:
    """The unit of numbers scaled by ten to the `exponent`: million tokens."""
    return f"{_ILLIONS.get(exponent, power(exponent))} {of}".strip()


def scaled(value: float | None, exponent: int) -> str:
    """`value` in units of ten to the `exponent`, in about three digits."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return "0" if value == 0 else _three_digits(value / 10**exponent)


def nats(value: float | None, *, sign: bool = False) -> str:
    """A loss or a difference of losses to a thousandth of a nat, with a real minus."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.replace("-", "−")


def listed(items: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def shortened(text: str, width: int) -> str:
    """`text`, its middle left out where it is longer than `width` characters: names differ at either end."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + text[len(text) - tail :]


def _three_digits(value: float) -> str:
    size = abs(value)
    if size < 0.0995:
        return f"{value:.2g}"
    return f"{value:.2f}" if size < 9.995 else f"{value:.1f}" if size < 99.95 else f"{value:,.0f}"
