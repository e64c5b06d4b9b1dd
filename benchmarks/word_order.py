"""Benchmark of text conditioning, of word order: a denoiser's loss with the right caption, and with its opposite.

    python benchmarks/scenes.py words scenes-words
    python benchmarks/word_order.py scenes-words [--steps 400] [--optim adamw]

Scenes of benchmarks/scenes.py, "a red circle left of a blue square", averaged to 8 x 8 pixels, and a U-Net of a million
parameters that is trained by the product's own step at σ from 3 to 30, where nothing but the text says which of two
objects is where. At σ = 10 the loss of scenes that were not trained on is shown with their captions, and with captions
that say right for left and above for below: as long as the two are equal, the order has not been read. One thread.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.batch import Condition, ConditionSchema, LatentBatch
from ldm.data.config import TextConditionConfig
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
from ldm.randomness import generator, seed_weights
from ldm.text.captions import attribute_of
from ldm.text.encoder import encoded, open_encoder
from ldm.training.run import Run
from ldm.training.step import TrainingStep

# isort: off
from scenes import RELATIONS, draw_scene, random_scene
from stage_two import CONFIG, config_with

SIDE, BATCH, HELD_OUT, SIGMA = 8, 32, 500, 10.0
LENGTH = 12  # tokens
OPPOSITES = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))


def scenes(count: int) -> tuple[Tensor, list[str], list[str]]:
    """Images of 8 x 8 pixels, standardized, with their captions and the opposite ones."""
    rng = np.random.default_rng(0)
    images, captions, opposite = [], [], []
    for _ in range(count):
        scene = random_scene(rng, seen=True)
        drawn = torch.from_numpy(draw_scene(scene, rng)).float()
        images.append(drawn.unflatten(0, (SIDE, -1)).unflatten(2, (SIDE, -1)).mean((1, 3)).permute(2, 0, 1))
        captions.append(str(scene))
        opposite.append(str(replace(scene, relation=OPPOSITES[scene.relation])))
    stacked = torch.stack(images)
    return (stacked - stacked.mean((0, 2, 3), keepdim=True)) / stacked.std(), captions, opposite


@torch.no_grad()
def loss(denoiser: Denoiser, images: Tensor, tokens: Tensor) -> float:
    """EDM's, at σ = 10."""
    noise = torch.randn(images.shape, generator=generator(0, "benchmark"))
    denoised = denoiser(images + SIGMA * noise, SIGMA, Condition({"text": tokens}))
    return float((denoised - images).square().mean() * (1 + SIGMA**2) / SIGMA**2)


def learn(objective: DenoisingObjective, step: TrainingStep) -> None:
    """What is done with a step."""
    losses = objective(step.batch, step)
    step.update(losses.total)
    step.log(losses.terms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", help="a folder that `benchmarks/scenes.py words` has written, or wordllama")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--optim", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, captions, opposite = scenes(6000)
    encoder, texts = open_encoder(options.words), TextConditionConfig(encoder=options.words, length=LENGTH)
    tokens, held_out = encoded(encoder, captions, LENGTH), slice(len(images) - HELD_OUT, None)
    wrong = encoded(encoder, opposite[held_out], LENGTH)
    changed = {
        "denoiser.network": {"kind": "unet", "widths": [32, 64], "blocks": 1, "attention": [1]},
        "denoiser.skip": {"kind": "scalar"},
        "optim": {"kind": options.optim, "lr": 3e-3 if options.optim == "muon" else 1e-3, "warmup": 50},
        "run": {"steps": options.steps, "batch_size": BATCH, "seed": options.seed, "precision": "fp32"},
    }
    config = config_with(changed, CONFIG)
    run = Run(config, Path(tempfile.mkdtemp()) / "run", dry=True)
    seed_weights(options.seed)
    schema = ConditionSchema((attribute_of("text", texts, encoder),))
    denoiser = create_denoiser(DiffusionModelConfig((3, SIDE, SIDE), schema, config.denoiser, config.sampling))
    objective = run.prepare(DenoisingObjective(denoiser), trains=denoiser)
    run.resume("")
    drawn = torch.Generator().manual_seed(options.seed)
    began = time.process_time()
    for number in range(options.steps):
        chosen = torch.randint(len(images) - HELD_OUT, (BATCH,), generator=drawn)
        sigma = (math.log(3) + math.log(10) * torch.rand(BATCH, generator=drawn)).exp()
        noise = torch.randn(BATCH, 3, SIDE, SIDE, generator=drawn)
        batch = LatentBatch(images[chosen], noise, sigma, Condition({"text": tokens[chosen]}))
        run.begin_step(number)
        learn(objective, run.step(number, 0, batch))
        if (number + 1) % 100 == 0:
            seconds = time.process_time() - began
            right, reversed_order = (loss(denoiser, images[held_out], each) for each in (tokens[held_out], wrong))
            print(f"{number + 1} steps, {seconds:.0f} CPU s: {right:.3f}, opposite {reversed_order:.3f}", flush=True)


if __name__ == "__main__":
    main()
