"""Every way to merge, against formulas written from the papers in float64; closed forms; equal sources; copies."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from store.safetensors_bytes import file_of

from rekindle import api
from rekindle.edit.noise import uniform_block
from rekindle.errors import RekindleError
from rekindle.methods.merging.karcher import middle
from rekindle.methods.merging.model_stock import ratio
from rekindle.methods.merging.series import ema, mean, wsm
from rekindle.methods.merging.slerp import arc
from rekindle.store.dtypes import COMPUTED, from_float, to_float
from rekindle.store.folder import open_folder

TENSORS = {"a.weight": (17, 23), "b.weight": (8, 3, 5), "c.bias": (31,), "d.scale": ()}
EPS = {"F64": 1e-11, "F32": 3e-7, "F16": 1e-3, "BF16": 8e-3}
DTYPES = list(EPS)


def written(folder: Path, arrays: dict[str, np.ndarray], dtype: str = "F64") -> Path:
    """A model of a class that no table knows, with these tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    stored = {name: from_float(np.asarray(array), dtype) for name, array in arrays.items()}
    rows = {name: (dtype, array.shape, array.tobytes()) for name, array in stored.items()}
    (folder / "model.safetensors").write_bytes(file_of(rows))
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    """Its tensors as float64, each exactly."""
    found = {}
    for name, stored in open_folder(folder).tensors.items():
        data = Path(stored.path).read_bytes()[stored.offset : stored.offset + stored.nbytes]
        raw = np.frombuffer(data, COMPUTED[stored.dtype]).reshape(stored.shape)
        found[name] = to_float(raw, stored.dtype).astype(np.float64)
    return found


def models(tmp_path: Path, count: int, dtype: str = "F64", spread: float = 0.3) -> list[Path]:
    """Models near each other; the last is the base."""
    rng = np.random.default_rng(7)
    base = {name: rng.standard_normal(shape) for name, shape in TENSORS.items()}
    made = [{name: w + spread * rng.standard_normal(w.shape) for name, w in base.items()} for _ in range(count - 1)]
    return [written(tmp_path / f"m{i}", arrays, dtype) for i, arrays in enumerate([*made, base])]


# -- the papers' formulas, of one tensor of each -------------------------------------------------------------------


def paper_linear(ws, w0, weights=(0.2, 0.5, 0.3)):
    return sum(a * w for a, w in zip(weights, ws))


def paper_slerp(ws, w0, t=0.3):
    """Shoemake: sin((1 - t) a) / sin a, sin(t a) / sin a."""
    one, two = ws
    angle = np.arccos((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))
    if np.sin(angle) < 1e-8:
        return (1 - t) * one + t * two
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * two) / np.sin(angle)


def paper_karcher(ws, w0, weights=None):
    """Buss and Fillmore, algorithm A1, on the vectors themselves; the mean of the lengths."""
    weights = np.full(len(ws), 1 / len(ws)) if weights is None else weights
    lengths = [np.linalg.norm(w) for w in ws]
    units = [w / n for w, n in zip(ws, lengths)]
    q = paper_linear(units, None, weights)
    q = q / np.linalg.norm(q)
    for _ in range(300):
        tangents = []
        for u in units:
            cosine = np.clip((q * u).sum(), -1, 1)
            across = u - cosine * q
            size = np.linalg.norm(across)
            tangents.append(np.arctan2(size, cosine) / size * across if size > 1e-300 else 0 * u)
        step = paper_linear(tangents, None, weights)
        size = np.linalg.norm(step)
        if size < 1e-15:
            break
        q = np.cos(size) * q + np.sin(size) / size * step
    return q * (np.asarray(weights) @ lengths)


def paper_task(ws, w0, weights=(0.4, -0.2, 0.9), lambda_=0.7):
    return w0 + lambda_ * sum(a * (w - w0) for a, w in zip(weights, ws))


def largest(tau, keep, skip=0):
    """tau with all but `keep` of its entries, after the `skip` largest, at zero; of those of one size all count."""
    sizes = np.sort(np.abs(tau), axis=None)[::-1]
    within = (np.abs(tau) <= sizes[skip]) & (np.abs(tau) >= sizes[min(tau.size, skip + keep) - 1])
    return np.where(within, tau, 0)


def paper_ties(ws, w0, density=0.4, lambda_=0.8, weights=(1, 2, 1)):
    """Algorithm 1: trim, elect the sign, mean of those that agree; weights weigh votes and mean."""
    keep = max(1, round(density * w0.size))
    taus = [largest(w - w0, keep) for w in ws]
    sign = np.sign(sum(a * tau for a, tau in zip(weights, taus)))
    agree = [(np.sign(tau) == sign) & (sign != 0) for tau in taus]
    total = sum(a * tau * ok for a, tau, ok in zip(weights, taus, agree))
    count = sum(a * ok for a, ok in zip(weights, agree))
    return w0 + lambda_ * total / np.where(count, count, 1)


def paper_dare(ws, w0, key, density=0.6, seed=5, weights=(1, 1, 1)):
    taus = []
    for i, w in enumerate(ws):
        kept = uniform_block(seed, f"{key}/{i}", 0, w.size).reshape(w.shape) < density
        taus.append((w - w0) * kept / density)
    return w0 + sum(a * tau for a, tau in zip(weights, taus))


def paper_breadcrumbs(ws, w0, density=0.5, gamma=0.1, weights=(1, 1, 1)):
    keep, skip = max(1, round(density * w0.size)), round(gamma * w0.size)
    return w0 + sum(a * largest(w - w0, keep, skip) for a, w in zip(weights, ws))


def paper_stock(ws, w0):
    """Section 4.2: t = k cos / (1 + (k - 1) cos) between the base and the mean."""
    taus = [(w - w0).reshape(-1) for w in ws]
    pairs = [(x, y) for i, x in enumerate(taus) for y in taus[i + 1 :]]
    cosine = max(0, np.mean([x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in pairs]))
    t = len(ws) * cosine / (1 + (len(ws) - 1) * cosine)
    return t * sum(ws) / len(ws) + (1 - t) * w0


def paper_mean(ws, w0):
    return sum(ws) / len(ws)


def paper_ema(ws, w0, decay=0.8):
    average = ws[0]
    for w in ws[1:]:
        average = decay * average + (1 - decay) * w
    return average


def paper_wsm(ws, w0):
    """The updates between checkpoints, each times what 1-sqrt decay leaves of its learning rate."""
    return ws[0] + sum((1 - np.sqrt(i / len(ws))) * (y - x) for i, (x, y) in enumerate(pairwise(ws), 1))


CASES = {
    "linear": ({"weights": ("0.2", "0.5", "0.3")}, paper_linear, 3),
    "slerp": ({"t": "0.3"}, paper_slerp, 2),
    "karcher": ({}, paper_karcher, 3),
    "task": ({"weights": ("0.4", "-0.2", "0.9"), "lambda_": 0.7}, paper_task, 3),
    "ties": ({"weights": ("1", "2", "1"), "density": 0.4, "lambda_": 0.8}, paper_ties, 3),
    "breadcrumbs": ({"density": 0.5, "gamma": 0.1}, paper_breadcrumbs, 3),
    "stock": ({}, paper_stock, 3),
    "mean": ({}, paper_mean, 3),
    "ema": ({"decay": 0.8}, paper_ema, 3),
    "wsm": ({}, paper_wsm, 3),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", [*CASES, "dare"])
def test_a_way_is_its_formula(tmp_path, how, dtype):
    options, formula, count = CASES.get(how, ({"density": 0.6, "seed": 5}, None, 3))
    *folders, base = models(tmp_path, count + 1, dtype)
    over = {"base": base} if how in ("task", "ties", "dare", "breadcrumbs", "stock") else {}
    found = read(api.merge(folders, how=how, **options, **over).save(tmp_path / "out"))
    ws, w0 = [read(folder) for folder in folders], read(base)
    for name in TENSORS:
        tensor = [w[name] for w in ws]
        expected = formula(tensor, w0[name]) if formula else paper_dare(tensor, w0[name], f"tensor {name}")
        scale = max(1, *(np.abs(w).max() for w in tensor))
        assert np.abs(found[name] - expected).max() <= EPS[dtype] * scale, name
