"""All tables, by model_type. Checked against the transformers classes by the tests."""

from __future__ import annotations

from rekindle.anatomy.dense import DENSE
from rekindle.anatomy.encoders import ENCODERS
from rekindle.anatomy.seq2seq import SEQ2SEQ
from rekindle.anatomy.sparse import SPARSE
from rekindle.anatomy.t5gemma import GEMMAS
from rekindle.anatomy.vision import VISION

FAMILIES = {family.model_type: family for family in (*DENSE, *SPARSE, *ENCODERS, *SEQ2SEQ, *GEMMAS, *VISION)}
