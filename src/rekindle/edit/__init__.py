"""The language methods are written in: checkpoints of tensor expressions, promises, plans."""

from rekindle.edit.arithmetic import Fill, Normal
from rekindle.edit.checkpoint import ONCE, REPEATED, TIED, Checkpoint, united
from rekindle.edit.expressions import Expr
from rekindle.edit.keyed import joint
from rekindle.edit.opening import checkpoint_at, open_checkpoint
from rekindle.edit.plan import Plan, plan
from rekindle.edit.promise import Promise, exact, lossy

__all__ = [
    "ONCE",
    "REPEATED",
    "TIED",
    "Checkpoint",
    "Expr",
    "Fill",
    "Normal",
    "Plan",
    "Promise",
    "checkpoint_at",
    "exact",
    "joint",
    "lossy",
    "open_checkpoint",
    "plan",
    "united",
]
