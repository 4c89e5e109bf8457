"""The verbs as functions; the command line is their thin twin.

rekindle.upcycle(rekindle.open("dense"), experts=8, top_k=2).save("moe")
rekindle.verify("moe", against="dense")
"""

from __future__ import annotations

from rekindle.api.archive import archive_contents, archive_diff, archive_drop, archive_info, archive_verify, unpack
from rekindle.api.averaging import average
from rekindle.api.combination import Combination
from rekindle.api.combining import combine
from rekindle.api.failures import simulate
from rekindle.api.join import join
from rekindle.api.laws import fit, laws, plan
from rekindle.api.look import checksums, env, inspect, not_finite, sound, verify
from rekindle.api.merging import merge
from rekindle.api.methods import apply, gqa, grow_depth, grow_experts, rewrite, upcycle
from rekindle.api.model import Model, open
from rekindle.api.music import compose, music_data, music_evaluate, music_train
from rekindle.api.pack import archive_add, pack
from rekindle.api.recipe import is_training, load_recipe, run, run_cost
from rekindle.api.repairing import repair
from rekindle.api.saving import command
from rekindle.api.training import evaluate, init, init_cost, load, report, train, train_cost, utility
from rekindle.api.tunes import Composition
from rekindle.api.warming import warm_start
from rekindle.codec.archive import Archive

__all__ = [
    "Archive",
    "Combination",
    "Composition",
    "Model",
    "apply",
    "archive_add",
    "archive_contents",
    "archive_diff",
    "archive_drop",
    "archive_info",
    "archive_verify",
    "average",
    "checksums",
    "combine",
    "command",
    "compose",
    "env",
    "evaluate",
    "fit",
    "gqa",
    "grow_depth",
    "grow_experts",
    "init",
    "init_cost",
    "inspect",
    "is_training",
    "join",
    "laws",
    "load",
    "load_recipe",
    "merge",
    "music_data",
    "music_evaluate",
    "music_train",
    "not_finite",
    "open",
    "pack",
    "plan",
    "repair",
    "report",
    "rewrite",
    "run",
    "run_cost",
    "simulate",
    "sound",
    "train",
    "train_cost",
    "unpack",
    "upcycle",
    "utility",
    "verify",
    "warm_start",
]
