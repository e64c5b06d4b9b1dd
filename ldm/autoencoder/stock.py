"""Stock AutoencoderKL folders of diffusers: reading any, writing ours so that nobody needs this package to use them."""

import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.autoencoder.network import KLNetwork, StockNetwork
from ldm.errors import CheckpointError
from ldm.nn.convolution import zeroed

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def read(source: str | Path) -> "AutoencoderKL":
    """The AutoencoderKL in a folder or under a hub id. Weights are read from safetensors only; nothing is unpickled."""
    from diffusers import AutoencoderKL

    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{source} is not an autoencoder: it has no config.json")
    quiet = logging.getLogger("diffusers.models.modeling_utils")
    before = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        kl, report = AutoencoderKL.from_pretrained(
            str(source), use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
        if missing := report["missing_keys"]:  # diffusers would leave them random
            raise ValueError(f"it lacks {len(missing)} of the weights, for instance {min(missing)}")
        return kl.eval()
    except Exception as error:  # diffusers and safetensors raise many types here, all meaning: not a usable folder
        where = "does not hold" if folder.exists() else "is neither a folder nor a hub id that can be reached for"
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{source} {where} an AutoencoderKL in safetensors ({reason})") from error
    finally:
        quiet.setLevel(before)


def write(network: KLNetwork | StockNetwork, mean: Tensor, std: Tensor, folder: Path) -> None:
    """Save a stock AutoencoderKL whose own latents have the statistics folded in, with a scaling factor of 1.

    `mean` and `std` (channels x 1 x 1) are those of the network's latents z. Folding makes the 1 x 1 convolutions
    beside the latent give and take (z - mean) / std; it is exact wherever the log variance is not clamped.
    """
    stock = copy.deepcopy(network.stock).cpu() if isinstance(network, StockNetwork) else to_stock(network)
    if stock.quant_conv is None or stock.post_quant_conv is None:
        add_identity_convolutions(stock)
    fold(stock, mean.detach().cpu().double().flatten(), std.detach().cpu().double().flatten())
    stock.register_to_config(scaling_factor=1.0, shift_factor=None, latents_mean=None, latents_std=None)
    stock.save_pretrained(str(folder), safe_serialization=True)


def to_stock(network: KLNetwork) -> "AutoencoderKL":
    """The same weights in diffusers' own class, on the CPU in float32."""
    from diffusers import AutoencoderKL

    stock = AutoencoderKL(**network.config, force_upcast=False)
    stock.load_state_dict({name: value.detach().cpu().float() for name, value in network.state_dict().items()})
    return stock.eval()


def add_identity_convolutions(stock: "AutoencoderKL") -> None:
    """Some autoencoders (SD3, FLUX) have no quant convolutions; ones that do nothing give the statistics a place."""
    for name, channels in (("quant_conv", 2), ("post_quant_conv", 1)):
        width = channels * stock.config["latent_channels"]
        convolution = zeroed(torch.nn.Conv2d(width, width, 1))
        torch.nn.init.dirac_(convolution.weight)
        setattr(stock, name, convolution)
    stock.register_to_config(use_quant_conv=True, use_post_quant_conv=True)


@torch.no_grad()
def fold(stock: "AutoencoderKL", mean: Tensor, std: Tensor) -> None:
    """Change the quant convolutions in place so that latents come out, and go in, standardized."""
    encoding, decoding, channels = stock.quant_conv, stock.post_quant_conv, len(mean)
    weight, bias = encoding.weight.double(), encoding.bias.double()
    weight[:channels] /= std[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()
    encoding.weight.copy_(weight)
    encoding.bias.copy_(bias)
    weight, bias = decoding.weight.double(), decoding.bias.double()
    decoding.bias.copy_(bias + weight[:, :, 0, 0] @ mean)
    decoding.weight.copy_(weight * std[None, :, None, None])
