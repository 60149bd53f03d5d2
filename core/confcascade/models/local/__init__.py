"""Models in this process: any causal language model of the hub or a folder, through `transformers`."""

from confcascade.models.local.model import TransformersModel
from confcascade.models.local.on_demand import OnDemandModel

__all__ = ["OnDemandModel", "TransformersModel"]
