"""Measures editing on a finished run: what comes back, the seams of inpainting, and how plausible is what lies between.

    python benchmarks/editing.py RUN FEATURES [NUM]

RUN is a finished run of train_diffusion.py, FEATURES a folder of benchmarks/lite.py, and NUM (200) how many samples
and midpoints are compared by their Fréchet distance to as many real images: midpoints of pairs of seeds of one class,
and of pairs of held-out images by inversion. One line of JSON for each part.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from ldm.data.datasets import Subset, open_dataset
from ldm.diffusion.editing import inverted
from ldm.editing.image_to_image import image_to_image, inpaint
from ldm.editing.interpolation import drawn_end, image_end, interpolate
from ldm.evaluation.feature_networks import FeatureExtractor, open_extractor
from ldm.evaluation.metrics import frechet_distance, kernel_distance, psnr
from ldm.pipeline import LatentDiffusion
from ldm.script_configs import data_of_run
from ldm.shapes import Images, to_uint8
from ldm.training.devices import choose_device

BATCH, EDITED = 50, 12
FAST = {"sampler": "dpm++2m", "steps": 14, "guidance": 1.0}  # one call of the denoiser each


def main(run: str, features: str, num: int = 200) -> None:
    config = data_of_run(run)
    assert config is not None, f"{run} has no config.yaml"
    device = choose_device(None)
    model = LatentDiffusion.load(run, device)
    training, held_out = open_dataset(config, progress=False).split()
    extractor = open_extractor("features", features, config.channels, device)
    assert extractor is not None
    images = first(held_out, EDITED)
    for part in (returned(model, images), seams(model, images), plausible(model, training, held_out, extractor, num)):
        print(json.dumps(part), flush=True)


def first(subset: Subset, count: int, start: int = 0) -> Images:
    """Some images of a set, spread evenly over it."""
    chosen = torch.linspace(start, len(subset) - 1, count).round().long().tolist()
    return Subset(subset.dataset, [subset.indices[place] for place in chosen]).images()


@torch.no_grad()
def returned(model: LatentDiffusion, images: Images) -> dict[str, object]:
    """What inversion and back misses, in units of the latents' standard deviation, and what a tiny strength changes."""
    condition, latents = (
        model.config.schema.request(None)[[0] * len(images)].null().to(model.device),
        model.encode(images),
    )
    missed = {}
    for steps in (9, 18, 36):
        plan = model.plan(steps=steps, guidance=1.0)
        start = inverted(model.guided(1.0, condition), latents, plan.sigmas)
        missed[steps] = (model.denoise(start, condition, plan) - latents).square().mean().sqrt().item()
    near = image_to_image(model, images, condition, model.plan(strength=1e-4, guidance=1.0))
    return {
        "inversion_rms_by_steps": missed,
        "strength_1e-4_psnr_to_reconstruction": psnr(model.decode(latents), near).mean().item(),
        "reconstruction_psnr": psnr(images, model.decode(latents)).mean().item(),
    }


def seams(model: LatentDiffusion, images: Images) -> dict[str, object]:
    """Jumps between neighboring pixels across the border of a mask, over those there in the images, by resamplings."""
    height, width = images.shape[-2:]
    hidden = torch.zeros(1, 1, height, width, dtype=torch.bool)
    hidden[..., height // 3 : height, width // 4 : width - width // 4] = True
    condition = model.config.schema.request(None)[[0] * len(images)].null()
    found: dict[str, object] = {"jump_of_images": jump(images, hidden)}
    for resamplings in (1, 3, 6):
        began = time.process_time()
        plan = model.plan(guidance=1.0, **{name: FAST[name] for name in ("sampler", "steps")})
        drawn = inpaint(model, images, hidden, condition, plan, resamplings=resamplings)
        different = (to_uint8(drawn).int() - to_uint8(images).int()).abs()[~hidden.expand_as(drawn)]
        found[f"resamplings_{resamplings}"] = {
            "jump_over_that_of_images": jump(drawn, hidden) / jump(images, hidden),
            "largest_difference_of_known_pixels": different.max().item(),
            "cpu_seconds": time.process_time() - began,
        }
    return found


def jump(images: Images, hidden: Tensor) -> float:
    """The mean absolute difference between pixels on both sides of the border."""
    across = (hidden[..., 1:] != hidden[..., :-1]).expand(len(images), images.shape[1], -1, -1)
    return (images[..., 1:] - images[..., :-1]).abs()[across].mean().item()


@torch.no_grad()
def plausible(
    model: LatentDiffusion, training: Subset, held_out: Subset, extractor: FeatureExtractor, num: int
) -> dict[str, object]:
    """Fréchet and kernel distances to real images: of samples, of midpoints of samples, and of images."""
    classes = max(len(model.classes), 1)
    num = max(num // classes, 1) * classes  # so that both ends of a way are of one class
    plan, condition = model.plan(**FAST), model.config.schema.request(None)
    samples, midpoints, between = [], [], []
    for batch in torch.arange(num).split(BATCH):
        own, other = tuple(batch.tolist()), tuple((batch + num).tolist())
        of_batch, halves = condition.repeated(batch), torch.full((len(batch),), 0.5)
        samples.append(model.decode(model.denoise(model.start(own, plan), of_batch, plan, numbers=own)))
        ends = [drawn_end(model, numbers, of_batch, plan) for numbers in (own, other)]
        midpoints.append(interpolate(model, *ends, halves, plan))
    pairs = first(held_out, 2 * min(num, len(held_out) // 2))
    for one, other_image in zip(*(part.split(BATCH) for part in (pairs[::2], pairs[1::2])), strict=True):
        null = condition[[0] * len(one)].null()
        ends = [image_end(model, part, null, plan) for part in (one, other_image)]
        between.append(interpolate(model, *ends, torch.full((len(one),), 0.5), plan))
    real = features_of(first(training, num), extractor, model.device)
    found: dict[str, object] = {"images": num, "sampler": FAST}
    distances = {}
    for name, images in (("samples", samples), ("midpoints_of_samples", midpoints), ("midpoints_of_images", between)):
        rows = features_of(torch.cat(images), extractor, model.device)
        distances[name] = frechet_distance(real[: len(rows)], rows)
        found[name] = {"frechet": distances[name], "kernel": kernel_distance(real, rows), "images": len(rows)}
    return found | {"midpoints_over_samples": distances["midpoints_of_samples"] / distances["samples"]}


def features_of(images: Images, extractor: FeatureExtractor, device: torch.device) -> Tensor:
    """A row of features for each image."""
    return torch.cat([extractor.features(part.to(device)).float().cpu() for part in images.split(BATCH)])


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python benchmarks/editing.py RUN FEATURES [NUM]")
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
