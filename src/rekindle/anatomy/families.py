"""All tables, by model_type. Checked against the transformers classes by the tests."""

from __future__ import annotations

from rekindle.anatomy.dense import DENSE
from rekindle.anatomy.encoders import ENCODERS
from rekindle.anatomy.sparse import SPARSE

FAMILIES = {family.model_type: family for family in (*DENSE, *SPARSE, *ENCODERS)}
