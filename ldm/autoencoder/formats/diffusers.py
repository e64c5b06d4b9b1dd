"""diffusers' AutoencoderKL: reads any with its scaling factor, and folds the latent statistics into its weights."""

import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from ldm.autoencoder.formats import compvis
from ldm.checkpoint import read_entry, read_json
from ldm.config.yaml_file import read_yaml
from ldm.errors import CheckpointError
from ldm.nn.convolution import zeroed

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

OURS = "ldm.Autoencoder"  # the _class_name of folders in our own format
STOCK = "AutoencoderKL"
WHOLE = "diffusion_pytorch_model"  # what diffusers calls the weights beside a config.json
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
HUB_ID = r"[\w.-]+/[\w.-]+"


def resolve_path(source: str | Path) -> Path:
    """Where the autoencoder lies: in `vae/` if `source` is a finished run, in the file that `ldm export` wrote.

    Raises CheckpointError for a run that is not finished, and for several files that it may be.
    """
    folder = Path(source).expanduser()
    if any((folder / name).is_file() for name in ("config.yaml", "environment.json")):
        check_finished(folder)
    if (folder / "vae").is_dir():
        return folder / "vae"
    if is_ours(folder):
        return folder
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or any(file.name.startswith(WHOLE) for file in files):
        return folder
    if len(files) > 1:
        raise CheckpointError(f"{source} holds {len(files)} .safetensors files: name the one that is meant")
    return files[0]


def check_finished(run: Path) -> None:
    """Raise CheckpointError if the export of a run is not there, or older than what its config.yaml asks for."""
    if (run / "config.json").is_file():  # an autoencoder and no run
        return
    steps, done, given = 0, 0, None
    if (run / "config.yaml").is_file() and (run / "environment.json").is_file():
        given = read_yaml(run / "config.yaml")
        section = given.get("run") if isinstance(given, dict) else None
        found = section.get("steps") if isinstance(section, dict) else None
        steps = found if isinstance(found, int) else 0
        done = read_entry(run / "finished.json", "step", int) if (run / "finished.json").is_file() else 0
    if done >= steps and (run / "vae").is_dir():
        return
    diffuses = isinstance(given, dict) and "denoiser" in given
    exported = "unet" if diffuses else "vae"
    why = f"{done or 'none'} of its {steps} steps are in {exported}/" if steps else f"it has no {exported}/ yet"
    ways = ["let it go on"]
    if done and (run / "vae").is_dir():
        ways.append(f"train it with --run.steps {done} to have it as it was")
    if not diffuses:
        ways.append("take a checkpoint of it with ldm export --checkpoint STEP")
    raise CheckpointError(f"{run} is a run that is not finished ({why}): {', or '.join(ways)}")


def is_ours(folder: Path) -> bool:
    """Whether a folder holds an autoencoder that is not an AutoencoderKL, in our own format."""
    file = folder / "config.json"
    return file.is_file() and isinstance(found := read_json(file), dict) and found.get("_class_name") == OURS


def read(source: str | Path) -> "AutoencoderKL":
    """The AutoencoderKL in a folder, a finished run, a CompVis-keyed .safetensors file, or under a hub id.

    Raises CheckpointError if there is none. Weights are read from safetensors only; nothing is unpickled.
    """
    place = resolve_path(source)
    if place.suffix in PICKLES:
        raise CheckpointError(f"{source} may be a pickle, and those are not opened: convert it to .safetensors")
    if not place.exists() and not re.fullmatch(HUB_ID, str(source)):
        raise CheckpointError(f"{source} does not exist, and is not a hub id")
    if place.is_file() and place.name.startswith(WHOLE) and (place.parent / "config.json").is_file():
        place, variant = place.parent, variant_in(place)
    else:
        variant = None if not place.is_dir() else variant_of(place)
    if place.is_file() and place.suffix == ".safetensors":
        with as_checkpoint_error(f"{source} does not hold a CompVis autoencoder"):
            return build(*compvis.read(place))
    if place.exists() and not (place / "config.json").is_file():
        raise CheckpointError(f"{source} is not an autoencoder: it has no config.json, and is not a .safetensors file")
    where = "does not hold" if place.exists() else "is neither a folder nor a hub id that can be reached for"
    with as_checkpoint_error(f"{source} {where} an AutoencoderKL in safetensors"):
        if place.exists():
            check_class(read_json(place / "config.json"))
        check_files(place)
        return from_pretrained(str(place) if place.exists() else str(source), variant)


@contextmanager
def as_checkpoint_error(problem: str) -> Iterator[None]:
    """Whatever goes wrong becomes a CheckpointError of one line: diffusers and safetensors raise many types here."""
    quiet = logging.getLogger("diffusers.models.modeling_utils")
    before = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{problem} ({' '.join(str(error).split())[:160]})") from error
    finally:
        quiet.setLevel(before)


def check_class(config: Any) -> None:
    """Raise ValueError, naming the class, for the config.json of something else than an AutoencoderKL."""
    if not isinstance(config, dict):
        raise ValueError("its config.json is not an object of JSON")
    name = config.get("_class_name", STOCK)
    if name == OURS:
        kind = (config.get("network") or {}).get("kind")
        raise ValueError(f"its network is {kind}, and autoencoder.network.kind pretrained begins with one of kl alone")
    if name != STOCK:
        why = ", whose codes are quantized" if name == "VQModel" else ""
        raise ValueError(f"its config.json says that it is a {name}{why}")


def variant_in(file: Path) -> str | None:
    """The variant that a file of weights is of: fp16, for diffusion_pytorch_model.fp16.safetensors."""
    return file.name.removeprefix(WHOLE).removesuffix(".safetensors").strip(".") or None


def variant_of(folder: Path) -> str | None:
    """The variant of diffusers' weights in a folder, where they are there in no other; None where they are plain.

    Raises CheckpointError for several variants, none of them the plain one.
    """
    files = sorted(folder.glob(f"{WHOLE}*.safetensors"))
    variants = [variant_in(file) for file in files if not re.search(r"-\d{5}-of-\d{5}", file.name)]
    if None in variants or not variants:
        return None
    if len(variants) > 1:
        names = " and ".join(file.name for file in files)
        raise CheckpointError(f"{folder} holds several variants: name the file that is meant, of {names}")
    return variants[0]


def from_pretrained(folder: str, variant: str | None = None) -> "AutoencoderKL":
    """diffusers' own reading, made strict, in float32."""
    from diffusers import AutoencoderKL

    kl, report = AutoencoderKL.from_pretrained(
        folder, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True, variant=variant
    )
    kl = kl.float()
    if missing := report["missing_keys"]:  # diffusers would leave them random
        raise ValueError(f"it lacks {len(missing)} of the weights, for instance {min(missing)}")
    if kl.config["in_channels"] != kl.config["out_channels"]:
        raise ValueError(f"it makes {kl.config['out_channels']} channels from {kl.config['in_channels']}")
    return validated(kl)


def check_files(folder: Path) -> None:
    """Raise ValueError for a file that is not safetensors, with the reason: diffusers would say only that it failed."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except Exception as error:  # of a type of its own
            raise ValueError(f"{file.name}: {error}") from error


def validated(kl: "AutoencoderKL") -> "AutoencoderKL":
    """The same, for use and not for training; an error if its weights or its statistics are not finite."""
    check_finite(kl.state_dict())
    statistics(kl.config)
    return kl.eval()


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first tensor that holds NaN or infinity."""
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity")


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "AutoencoderKL":
    """An AutoencoderKL with copies of these weights, on the CPU in float32; ValueError if they do not fit."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        kl = AutoencoderKL.from_config(dict(config))
    shapes = {name: value.shape for name, value in kl.state_dict().items()}
    if lacking := shapes.keys() - tensors.keys():
        raise ValueError(f"it lacks {len(lacking)} of the weights, for instance {min(lacking)}")
    if other := sorted(name for name in tensors if tensors[name].shape != shapes.get(name)):
        found, expected = tuple(tensors[other[0]].shape), tuple(shapes.get(other[0], ()))
        raise ValueError(f"{other[0]} is of shape {found} instead of {expected}")
    kl.load_state_dict({name: value.detach().float().cpu().clone() for name, value in tensors.items()}, assign=True)
    return validated(kl)


def with_constant_logvar(tensors: Mapping[str, Tensor], std: Tensor, noise: float) -> dict[str, Tensor]:
    """Weights of an AutoencoderKL whose posterior has the standard deviation `noise` everywhere.

    `tensors` are those of a network that gives means alone, which are then divided by `std`, channels x 1 x 1.
    """
    wide = {name: value.detach().double() for name, value in tensors.items()}
    weight, bias = wide["quant_conv.weight"], wide["quant_conv.bias"]
    logvar = torch.full_like(bias, 2 * math.log(noise))
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        wide[name] = torch.cat([wide[name], torch.zeros_like(wide[name])])
    means = torch.cat([weight / std[..., None].to(weight), torch.zeros_like(weight)], dim=1)
    wide["quant_conv.weight"] = torch.cat([means, torch.zeros_like(means)])
    wide["quant_conv.bias"] = torch.cat([bias / std.flatten().to(bias), logvar])
    return wide


def statistics(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel that an AutoencoderKL's config states of its latents.

    diffusers' pipelines take (z - mean) * scaling_factor / std for the diffusion model, with `latents_mean` or else
    `shift_factor` as the mean, and `latents_std` or else 1 as the std. Raises CheckpointError if they are not finite.
    """
    channels = config["latent_channels"]
    mean, spread = config.get("latents_mean"), config.get("latents_std")
    scale = read_field("scaling_factor", config["scaling_factor"], (), positive=True)
    if mean is None:
        location = read_field("shift_factor", config.get("shift_factor") or 0.0, ()).repeat(channels)
    else:
        location = read_field("latents_mean", mean, (channels,))
    return location, read_field(
        "latents_std", [1.0] * channels if spread is None else spread, (channels,), True
    ) / scale


def read_field(name: str, given: Any, shape: tuple[int, ...], positive: bool = False) -> Tensor:
    """The finite number or numbers of that name in the configuration of an autoencoder, or CheckpointError."""
    try:
        found = torch.tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        found = torch.tensor(torch.nan)
    if found.shape != shape or not found.isfinite().all() or (positive and not (found > 0).all()):
        kind = "positive " if positive else ""
        wanted = f"{shape[0]} {kind}numbers" if shape else f"a {kind}number"
        raise CheckpointError(f"{name} of the autoencoder is {str(given)[:40]} instead of {wanted}")
    return found


def fold(
    kl: "AutoencoderKL", mean: Tensor, std: Tensor, scaling_factor: float = 1.0, shift_factor: float = 0.0
) -> "AutoencoderKL":
    """Change `kl` in place so that its own latents, minus `shift_factor`, times `scaling_factor`, are standardized.

    `mean` and `std` are those of its latents z, one per channel. The 1 x 1 convolutions beside the latent then give
    and take (z - mean) / std / scaling_factor + shift_factor; it is exact wherever the log variance is not clamped.
    """
    add_identity_convolutions(kl)
    mean, std = mean.detach().cpu().double().flatten(), std.detach().cpu().double().flatten() * scaling_factor
    fold_into(kl.quant_conv, kl.post_quant_conv, mean - std * shift_factor, std)
    shift = shift_factor or None
    kl.register_to_config(scaling_factor=scaling_factor, shift_factor=shift, latents_mean=None, latents_std=None)
    return kl


def add_identity_convolutions(kl: "AutoencoderKL") -> None:
    """Some autoencoders (SD3, FLUX) have no quant convolutions; ones that do nothing give the statistics a place."""
    for name, channels in (("quant_conv", 2), ("post_quant_conv", 1)):
        if getattr(kl, name) is not None:
            continue
        width = channels * kl.config["latent_channels"]
        convolution = zeroed(torch.nn.Conv2d(width, width, 1))
        torch.nn.init.dirac_(convolution.weight)
        setattr(kl, name, convolution)
    kl.register_to_config(use_quant_conv=True, use_post_quant_conv=True)


@torch.no_grad()
def fold_into(encoding: torch.nn.Conv2d, decoding: torch.nn.Conv2d, mean: Tensor, std: Tensor) -> None:
    """Change the convolutions after the encoder and before the decoder, in place; `mean` and `std` are float64."""
    channels = len(mean)
    assert encoding.bias is not None and decoding.bias is not None
    weight, bias = encoding.weight.double(), encoding.bias.double()
    weight[:channels] /= std[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()
    encoding.weight.copy_(weight)
    encoding.bias.copy_(bias)
    weight, bias = decoding.weight.double(), decoding.bias.double()
    decoding.bias.copy_(bias + weight[:, :, 0, 0] @ mean)
    decoding.weight.copy_(weight * std[None, :, None, None])
