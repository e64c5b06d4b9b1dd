"""The drawing modes of sample.py: the numbers of the images of each batch, and the function that draws one."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.cli.condition_options import requested_conditions
from ldm.cli.editing_options import FRAMES, GRID, check_number, numbers_of
from ldm.cli.options import size_of
from ldm.cli.sampling_options import requested_guidance, requested_options
from ldm.data.config import DataConfig
from ldm.diffusion.sampling import check_request, counted
from ldm.editing.config import RESAMPLINGS, STRENGTH
from ldm.editing.image_file import read_image, read_mask
from ldm.editing.image_to_image import image_to_image, inpaint
from ldm.editing.interpolation import PathEnd, denoising_path, drawn_end, image_end, interpolate
from ldm.errors import ConfigError
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import data_of_run

if TYPE_CHECKING:
    from ldm.batch import Condition, ConditionSchema
    from ldm.diffusion.sampling import SamplingPlan
    from ldm.shapes import Images

OnCount = Callable[[int], object]


@dataclass(frozen=True)
class Drawing:
    """The numbers of the images to draw, batch by batch; each batch is drawn by itself, by whichever process."""

    numbers: list[int]
    batches: list[Tensor]
    draw: Callable[[Tensor, OnCount], "Images"]
    names: list[str]  # of the conditions, in the order in which they repeat; none: of no condition
    steps: int  # of each batch
    columns: int | None = None  # of the grid; None: as many as there are names, or a square


def open_drawing(options: argparse.Namespace, model: LatentDiffusion) -> Drawing:
    """What a command line asks a model for; ConfigError or DataError for what it cannot do.

    A sampler and a number of steps that are left out become the model's own among the options, where pictures store
    them.
    """
    grid = model.config.sampling
    options.sampler = options.sampler or grid.sampler
    options.steps = grid.steps if options.steps is None else options.steps
    edits = options.image is not None or options.variations is not None
    is_file = options.interpolate is not None and any(map(os.path.isfile, options.interpolate))
    condition, names = requested_condition(options, model, from_images=edits or is_file)
    is_plain = (edits and not names) or is_file or options.variations is not None
    strength = options.strength or (1.0 if options.mask is not None else STRENGTH)
    weight = 1.0 if is_plain and options.guidance is None and not options.guide else None
    plan = model.plan(
        steps=options.steps,
        sampler=options.sampler,
        sampler_options=requested_options(options),
        guidance=requested_guidance(options, model, weight),
        seed=options.seed,
        strength=strength if options.image is not None else 1.0,
        size=sides_of(options.size),
    )
    asked = len(names) if is_asked(requested_conditions(options)) else 0
    images = max(len(names), 1) if options.image else max(GRID, asked)
    count = options.num or (FRAMES if options.interpolate else images)
    check_request(count if options.num is None else options.num, 1, "heun", options.batch_size)
    numbers = list(range(count)) if options.seeds is None else numbers_of(options.seeds)
    if options.interpolate is not None:
        return interpolating(options, model, condition, plan, count)
    if options.strip or options.gif:
        return forming(options, model, condition, plan, numbers[0])
    if options.image is not None:
        draw = editing(options, model, condition, plan)
    elif options.variations is not None:
        draw = varying(options, model, condition, plan, strength)
    else:
        draw = sampling(model, condition, plan)
    batches = list(torch.tensor(numbers).split(options.batch_size))
    times = options.resamplings or RESAMPLINGS if options.mask is not None else 1
    return Drawing(numbers, batches, draw, names, (len(plan.sigmas) - 1) * times)


def requested_condition(
    options: argparse.Namespace, model: LatentDiffusion, *, from_images: bool
) -> tuple["Condition", list[str]]:
    """The conditions to repeat, and their names; whoever starts from an image may leave them out."""
    requested, schema = requested_conditions(options), model.config.schema
    condition = model.prompts.request(**requested)
    if is_asked(requested):
        return condition, names_of(requested, schema, condition.count)
    if from_images and schema.attributes and model.config.trained_with_condition_dropout:
        return condition[[0]].null(), []
    return condition, schema.names(None)


def is_asked(requested: dict[str, Any]) -> bool:
    """Whether any condition is asked for."""
    return any(each is not None for each in requested.values())


def names_of(requested: dict[str, Any], schema: "ConditionSchema", count: int) -> list[str]:
    """What the images are called by, in the order in which they repeat: classes, prompts or values, which differ."""
    labels, prompts, conditions = (requested[name] for name in ("labels", "prompt", "conditions"))
    columns = [] if labels is None else [schema.names(labels)]
    columns += [] if prompts is None else [prompts]
    for name, values in (conditions or {}).items():
        attribute = schema.attribute(name)
        if attribute.kind == "class":
            values = [attribute.classes[attribute.index(each, name)] for each in values]
        columns.append(values)
    return next(names for names in columns if len(names) == count)


def sampling(model: LatentDiffusion, condition: "Condition", plan: "SamplingPlan") -> Callable[..., "Images"]:
    """Samples from noise."""

    def draw(numbers: Tensor, on_step: OnCount) -> "Images":
        own = numbers.tolist()
        return model.decode(
            model.denoise(
                model.start(own, plan), condition.repeated(numbers), plan, numbers=own, on_step=counted(on_step)
            )
        )

    return draw


def editing(
    options: argparse.Namespace, model: LatentDiffusion, condition: "Condition", plan: "SamplingPlan"
) -> Callable[..., "Images"]:
    """New images from one, or the part of it that a mask hides."""
    config = image_config(options, model, plan)
    image, hidden = read_image(options.image, "--image", config), None
    if options.mask is not None:
        hidden = read_mask(options.mask, "--mask", options.image, config)

    def draw(numbers: Tensor, on_step: OnCount) -> "Images":
        images, own = image.expand(len(numbers), -1, -1, -1), condition.repeated(numbers)
        if hidden is None:
            return image_to_image(model, images, own, plan, numbers=numbers.tolist(), on_step=on_step)
        times = options.resamplings or RESAMPLINGS
        return inpaint(model, images, hidden, own, plan, resamplings=times, numbers=numbers.tolist(), on_step=on_step)

    return draw


def varying(
    options: argparse.Namespace, model: LatentDiffusion, condition: "Condition", plan: "SamplingPlan", strength: float
) -> Callable[..., "Images"]:
    """Images near one: its noise, found by inversion, on the way to other noise."""
    requested = requested_conditions(options)
    if is_asked(requested) and condition.count > 1:
        several = "the conditions" if requested["labels"] is None else f"--labels {options.labels}"
        raise ConfigError(f"{several} are several, and --variations is of one picture: give one of them")
    image = read_image(options.variations, "--variations", image_config(options, model, plan))
    ends: list[PathEnd] = []

    def draw(numbers: Tensor, on_step: OnCount) -> "Images":
        if not ends:
            ends.append(image_end(model, image, condition[[0]], plan))
        fresh = drawn_end(model, tuple(numbers.tolist()), condition[[0]], plan)
        return interpolate(model, ends[0], fresh, torch.full((len(numbers),), strength), plan, on_step=on_step)

    return draw


def interpolating(
    options: argparse.Namespace, model: LatentDiffusion, condition: "Condition", plan: "SamplingPlan", count: int
) -> Drawing:
    """The images on the way between two ends."""
    if options.seeds is not None:
        raise ConfigError("--seeds names images, and --interpolate its own two ends: leave it out")
    ends = [end_named(text, place, options, model, condition, plan) for place, text in enumerate(options.interpolate)]
    shares = torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5])

    def draw(numbers: Tensor, on_step: OnCount) -> "Images":
        return interpolate(model, ends[0], ends[1], shares[numbers], plan, on_step=on_step)

    batches = list(torch.arange(count).split(options.batch_size))
    return Drawing(list(range(count)), batches, draw, [], len(plan.sigmas) - 1, columns=count)


def end_named(
    text: str,
    place: int,
    options: argparse.Namespace,
    model: LatentDiffusion,
    condition: "Condition",
    plan: "SamplingPlan",
) -> PathEnd:
    """One end of --interpolate: the number of an image, the file of one, or a condition."""
    requested = requested_conditions(options)
    own = condition.repeated(torch.tensor([place]))
    if text.isdecimal():
        check_number("--interpolate", int(text))
        own = own if is_asked(requested) else condition.repeated(torch.tensor([int(text)]))
        return drawn_end(model, (int(text),), own, plan)
    if os.path.isfile(text):
        return image_end(model, read_image(text, "--interpolate", image_config(options, model, plan)), own, plan)
    asked = model.prompts.request(**request_of_end(text, requested, model))
    return drawn_end(model, (0,), asked.repeated(torch.tensor([place])), plan)


def request_of_end(text: str, requested: dict[str, Any], model: LatentDiffusion) -> dict[str, Any]:
    """What is requested, with the condition of one end of --interpolate: class:NAME, prompt:TEXT or angle:90."""
    kind, _, value = text.partition(":")
    if text in model.classes or (kind == "class" and value in model.classes):
        return {**requested, "labels": [text if text in model.classes else value]}
    if kind == "prompt" and value:
        return {**requested, "prompt": [value]}
    attributes = model.config.schema.attributes
    if value and kind in [each.name for each in attributes]:
        return {**requested, "conditions": {**(requested["conditions"] or {}), kind: value}}
    classes = ", ".join(model.classes[:20]) + (" ..." if len(model.classes) > 20 else "")
    known = [*([f"class:NAME of {classes}"] if classes else []), *(f"{each.name}:VALUE" for each in attributes)]
    conditions = f"a condition of this model ({'; '.join(known)})" if known else "a class, as this model has none"
    raise ConfigError(f"--interpolate {text} is neither the number of an image, a file nor {conditions}")


def forming(
    options: argparse.Namespace, model: LatentDiffusion, condition: "Condition", plan: "SamplingPlan", number: int
) -> Drawing:
    """One image after each step."""

    def draw(numbers: Tensor, on_step: OnCount) -> "Images":
        return denoising_path(model, number, condition.repeated(torch.tensor([number])), plan, on_step=on_step)

    steps = len(plan.sigmas) - 1
    return Drawing(list(range(steps)), [torch.tensor([number])], draw, [], steps, steps)


def sides_of(text: str | None) -> tuple[int, int] | None:
    """Height and width of --size."""
    size = size_of(text)
    return (size, size) if isinstance(size, int) else size


def image_config(options: argparse.Namespace, model: LatentDiffusion, plan: "SamplingPlan") -> DataConfig:
    """How files of images are read: as the run read its own, at the size that is drawn."""
    trained = data_of_run(str(options.run)) or DataConfig()
    channels, *_ = model.image_shape
    factors, (_, height, width) = model.autoencoder.network.downsampling, plan.shape
    return DataConfig(
        size=(height * factors[0], width * factors[1]),
        channels=channels,
        background=trained.background,
        resize=trained.resize,
        value_range=trained.value_range,
    )


def open_model(options: argparse.Namespace, device: torch.device) -> LatentDiffusion:
    """The model of a run, with the average of its weights and in the precision that are asked for."""
    from ldm.training.snapshots import load_average

    model = LatentDiffusion.load(options.run, device)
    if options.ema is not None:
        load_average(model.denoiser, options.run, options.ema)
    if options.precision == "bf16":
        model.to(torch.bfloat16)
    return model.with_graph() if options.graph else model
