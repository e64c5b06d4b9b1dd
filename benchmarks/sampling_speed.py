"""Images a second beside diffusers' LDMPipeline with the same weights, one image at a time and in batches of 64.

    python benchmarks/sampling_speed.py OUT [--steps 18] [--rounds 5] [--run RUN]

Both take as many Euler steps of the same UNet2DModel and decode with the same AutoencoderKL, in turns in every round;
times are medians over the rounds. RUN is an unconditional run of docs/networks.md, "A run that stock diffusers opens".
Without one the model is written to OUT with random weights, on which speed does not depend: 4.3 million parameters on
16 x 16 latents, and the autoencoder of configs/vae/kl-f4.yaml. On a GPU ours is also timed with its denoiser as one
CUDA graph, and in bfloat16, of which LDMPipeline makes no array. One line of JSON for each batch size.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EDMEulerScheduler, LDMPipeline, UNet2DModel
from runs import ROOT

from ldm.autoencoder.model import create_trainable
from ldm.batch import ConditionSchema
from ldm.config import reader
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, ScalarSkipConfig, UNet2DConfig
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.export.diffusers_pipeline import save_pipeline
from ldm.pipeline import LatentDiffusion
from ldm.randomness import seed_weights
from ldm.script_configs import TrainVAEConfig
from ldm.training.devices import choose_device

SIDE = 64  # pixels
BATCHES = (1, 64)
Draw = Callable[[int], object]  # so many images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("out", type=Path, help="a folder for the model")
    add("--run", type=Path, help="a finished run to take instead")
    add("--steps", type=int, default=18)
    add("--rounds", type=int, default=5)
    add("--device")
    options = parser.parse_args()
    device = choose_device(options.device)
    run = options.run or written(options.out / "model")
    draws = {"ours": ours(run, device, options.steps), "LDMPipeline": stock(run, device, options.steps)}
    if device.type == "cuda":
        draws["ours, graph"] = ours(run, device, options.steps, graph=True)
        draws["ours, bf16"] = ours(run, device, options.steps, dtype=torch.bfloat16)
        draws["ours, bf16, graph"] = ours(run, device, options.steps, dtype=torch.bfloat16, graph=True)
    for batch in BATCHES:
        rates = {name: batch / seconds for name, seconds in timed(draws, batch, options.rounds, device).items()}
        over = {name: round(rate / rates["LDMPipeline"], 2) for name, rate in rates.items()}
        found = {"device": device.type, "batch": batch, "steps": options.steps, "over_LDMPipeline": over}
        print(json.dumps(found | {"images_per_second": {name: round(rate, 2) for name, rate in rates.items()}}))


def written(folder: Path) -> Path:
    """A model of random weights, in a folder as a run leaves it."""
    if not (folder / "unet" / "config.json").is_file():
        seed_weights(0)
        config = reader.load(TrainVAEConfig, ROOT / "configs" / "vae" / "kl-f4.yaml", {})
        autoencoder = create_trainable(config.autoencoder, image=(3, SIDE, SIDE))
        parts = DenoiserConfig(network=UNet2DConfig(), skip=ScalarSkipConfig())
        model = DiffusionModelConfig(autoencoder.latent_shape((SIDE, SIDE)), ConditionSchema(), parts, SamplingConfig())
        save_pipeline(folder, autoencoder, create_denoiser(model), model)
    return folder


def ours(
    run: Path, device: torch.device, steps: int, *, dtype: torch.dtype = torch.float32, graph: bool = False
) -> Draw:
    """`LatentDiffusion.sample`."""
    model = LatentDiffusion.load(run, device).to(dtype)
    model = model.with_graph() if graph else model
    return lambda num: model.sample(num, steps=steps, sampler="euler", batch_size=num)


def stock(run: Path, device: torch.device, steps: int) -> Draw:
    """LDMPipeline, which knows nothing of this package."""
    unet = UNet2DModel.from_pretrained(run, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(run, subfolder="vae")
    scheduler = EDMEulerScheduler.from_pretrained(run, subfolder="scheduler")
    pipe = LDMPipeline(vqvae=vae, unet=unet, scheduler=scheduler).to(device)
    pipe.set_progress_bar_config(disable=True)
    return lambda num: pipe(num, num_inference_steps=steps, output_type="np")


def timed(draws: dict[str, Draw], batch: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of one call of each, the median over rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in draws}
    for number in range(rounds + 1):
        for name, draw in draws.items():
            began = time.perf_counter() if device.type == "cuda" else time.process_time()
            draw(batch)  # images end on the host, so nothing is left to wait for
            ended = time.perf_counter() if device.type == "cuda" else time.process_time()
            if number:  # the first is the warm-up
                times[name].append(ended - began)
    return {name: statistics.median(each) for name, each in times.items()}


if __name__ == "__main__":
    main()
