"""Denoisers that a class of diffusers computes too: their folder is one that stock diffusers opens.

Such a folder has diffusers' config and weights, and beside them, in the same config.json, what we need to know.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm.batch import ConditionSchema
from ldm.diffusion.config import DenoiserConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.network import DenoiserNetwork

OURS = "_ldm"  # diffusers passes over entries that begin with an underscore
NETWORK = "network.model."  # how its names begin in the state of a denoiser
TABLE = "embedding.tables.{}.weight"  # of an attribute's classes there
CLASS_TABLE = "class_embedding.weight"  # the same in diffusers' class


def config_of_diffusers(denoiser: Denoiser, config: DenoiserConfig, schema: ConditionSchema) -> dict[str, Any] | None:
    """The config.json of diffusers' class; None if it has none that computes the same.

    Its schedulers know EDM's own c_skip, c_out, c_in and c_noise, and its networks one class label.
    """
    others = [name for name in denoiser.state_dict() if not name.startswith(NETWORK)]
    labels = [TABLE.format(each.name) for each in schema.attributes]
    is_edm = config.parametrization == "edm" and config.skip.kind == "scalar"
    if not is_edm or others != labels or len(labels) > 1 or not isinstance(denoiser.network, DenoiserNetwork):
        return None
    return denoiser.network.diffusers_config(len(schema.choices))


def with_our_config(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' config with ours in it."""
    return {**theirs, OURS: ours}


def our_config_in(entries: Any) -> Any:
    """Our config out of such a config.json, which is all of it for other denoisers."""
    return entries[OURS] if isinstance(entries, dict) and OURS in entries else entries


def their_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a denoiser under the names of diffusers' class."""
    return {
        name.removeprefix(NETWORK) if name.startswith(NETWORK) else CLASS_TABLE: value
        for name, value in tensors.items()
    }


def our_weights(tensors: Mapping[str, Tensor], schema: ConditionSchema) -> dict[str, Tensor]:
    """The inverse of `their_weights`."""
    table = TABLE.format(*(each.name for each in schema.attributes)) if schema.attributes else ""
    return {table if name == CLASS_TABLE else NETWORK + name: value for name, value in tensors.items()}
