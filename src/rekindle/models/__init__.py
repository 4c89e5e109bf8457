"""Models that transformers has no class for. `import rekindle.models` makes them known to its Auto classes.

vmoe.py   a ViT with experts, which choose their tokens
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from rekindle.models.vmoe import ON_DISK, VMoEConfig, VMoEForImageClassification, VMoEModel

__all__ = ["VMoEConfig", "VMoEForImageClassification", "VMoEModel"]

AutoConfig.register(VMoEConfig.model_type, VMoEConfig, exist_ok=True)
AutoModel.register(VMoEConfig, VMoEModel, exist_ok=True)
AutoModelForImageClassification.register(VMoEConfig, VMoEForImageClassification, exist_ok=True)
register_checkpoint_conversion_mapping(VMoEConfig.model_type, ON_DISK, overwrite=True)
