"""Options of how samples are drawn, which sample.py and `ldm evaluate --generate` share."""

import argparse
from typing import TYPE_CHECKING, Any

from ldm.cli.condition_options import weights_of
from ldm.diffusion.config import SAMPLER_OPTIONS
from ldm.errors import ConfigError

if TYPE_CHECKING:
    from ldm.diffusion.guidance import Guidance
    from ldm.pipeline import LatentDiffusion

GUIDANCE = ("guidance", "guidance_interval", "guidance_rescale", "guide")


def add_sampling_options(parser: Any) -> None:
    """The flags of guidance and of single samplers, for a parser or a group of one."""
    add = parser.add_argument
    weight = "weight of guidance; 1 means none (2 with conditions or --guide); or one for each, as text=4,label=2"
    add("--guidance", metavar="X", type=weights_of, help=weight)
    interval = "only between these noise levels, both above 0; outside it the model is left alone"
    add("--guidance-interval", metavar="LOW,HIGH", help=interval)
    rescale = "share, 0 to 1, in which answers get back the standard deviation they have without guidance (0)"
    add("--guidance-rescale", metavar="X", type=float, help=rescale)
    guide = "autoguidance, in place of classifier-free: by an early checkpoint of RUN itself, or by another run"
    add("--guide", metavar="early|RUN[@STEP]", help=guide)
    for name, option in SAMPLER_OPTIONS.items():
        add(f"--{name.replace('_', '-')}", metavar="X", type=float, help=option.meaning)


def requested_options(options: argparse.Namespace) -> dict[str, float]:
    """The options of samplers that are given."""
    given = {name: getattr(options, name) for name in SAMPLER_OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


def requested_interval(options: argparse.Namespace) -> tuple[float, float] | None:
    """The noise levels of --guidance-interval, or ConfigError."""
    if options.guidance_interval is None:
        return None
    try:
        low, high = (float(level) for level in options.guidance_interval.split(","))
    except ValueError:
        raise ConfigError(
            f"--guidance-interval {options.guidance_interval} must be two noise levels, as 0.3,3"
        ) from None
    return low, high


def requested_guidance(
    options: argparse.Namespace, model: "LatentDiffusion", weight: float | None = None
) -> "Guidance":
    """The guidance that is asked for, with another weight where one is given; RequestError for an impossible one."""
    from ldm.diffusion.guidance import checked_guidance
    from ldm.export.load_guide import EARLY, load_guide

    source = f"{options.run}@{EARLY}" if options.guide == EARLY else options.guide
    return checked_guidance(
        options.guidance if weight is None else weight,
        model.config.schema,
        model.config.trained_with_condition_dropout,
        interval=requested_interval(options),
        rescale=options.guidance_rescale,
        guide=load_guide(source, model) if source else None,
    )
