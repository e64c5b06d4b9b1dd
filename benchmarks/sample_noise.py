"""Decoders that expect noise, on the same samples: the Fréchet distance of what they make of these, and PSNR.

    python benchmarks/sample_noise.py runs/mine runs/sample_noise --features lite0      benchmarks/lite.py writes that

RUN holds vae/ and diffusion/, as the README trains them. The autoencoder is trained again from its own config with each
of some `objective.latent_corruption`. Its encoder does not learn, so that all have the same latents, and 1,000 samples
of the denoiser are drawn once and decoded by each: without guidance, and with weight 3 by the run's first checkpoint.
PSNR is of held-out images, from the mean of the latent and with noise of .05 and .2 of its standard deviation. A row
that is there already is not trained again.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.autoencoder.model import Autoencoder
from ldm.config import reader
from ldm.data.datasets import Subset, open_dataset
from ldm.diffusion.guidance import checked_guidance
from ldm.evaluation.feature_networks import open_extractor
from ldm.evaluation.metrics import frechet_distance, psnr
from ldm.export.load_guide import load_guide
from ldm.pipeline import LatentDiffusion
from ldm.randomness import generator
from ldm.script_configs import TrainVAEConfig
from ldm.shapes import Images, Latents, rounded

# isort: off
from runs import folder_name, from_root, print_table, row

GAUSSIAN = "--objective.latent_corruption.kind gaussian --objective.latent_corruption.sigma"
ROWS = {
    "none": "--objective.latent_corruption null",
    "0.02 to 0.15": f"{GAUSSIAN} '[0.02, 0.15]'",
    "0.03 to 0.3": f"{GAUSSIAN} '[0.03, 0.3]'",
    "0.05 to 0.5": f"{GAUSSIAN} '[0.05, 0.5]'",
    "0.2": f"{GAUSSIAN} 0.2",
}
SAMPLES, REAL, BATCH = 1000, 2000, 50
NOISES = (0.0, 0.05, 0.2)


def drawn(run: Path, labels: Tensor) -> dict[str, Latents]:
    """Latents of samples of these classes, by how they are guided."""
    model = LatentDiffusion.load(run)
    early = checked_guidance(3.0, model.config.schema, True, guide=load_guide(f"{run}@early", model))
    requested, found = model.prompts.request(labels), dict[str, Latents]()
    for name, guidance in {"without guidance": 1.0, "autoguidance": early}.items():
        plan, parts = model.plan(sampler="dpm++2m", steps=14, guidance=guidance), list[Latents]()
        for batch in torch.arange(len(labels)).split(BATCH):
            start = model.start(batch.tolist(), plan)
            parts.append(model.denoise(start, requested.repeated(batch), plan, numbers=batch.tolist()))
        found[name] = torch.cat(parts)
    return found


@torch.no_grad()
def decoded(autoencoder: Autoencoder, latents: Latents) -> Images:
    return torch.cat([rounded(autoencoder.decode(part).clamp(-1, 1)) for part in latents.split(BATCH)])


@torch.no_grad()
def psnrs(autoencoder: Autoencoder, held_out: Subset) -> Iterator[float]:
    """In dB, with each noise."""
    images = held_out.images()
    latents = torch.cat([autoencoder.encode(part).mode() for part in images.split(BATCH)])
    noise = torch.randn(latents.shape, generator=generator(0, "benchmark"))
    for scale in NOISES:
        yield float(psnr(rounded(images), decoded(autoencoder, latents + scale * noise)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a folder with the runs vae and diffusion")
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", required=True, help="a folder that benchmarks/lite.py has written")
    options = parser.parse_args()
    run, features = options.run.absolute(), Path(options.features).absolute()
    out = from_root(options.out)
    torch.set_num_threads(1)
    config = reader.load(TrainVAEConfig, run / "vae" / "config.yaml", {})
    training, held_out = open_dataset(config.data).split()
    extractor = open_extractor("features", str(features), training.shape[0], torch.device("cpu"))

    def seen(images: Images) -> Tensor:
        return torch.cat([extractor.features(part).float() for part in images.split(BATCH)])

    out.mkdir(parents=True, exist_ok=True)
    kept = out / "latents.safetensors"
    if not kept.exists():
        save_file(drawn(run / "diffusion", training.evenly_spaced(SAMPLES).labels), kept)
    samples = dict(sorted(load_file(kept).items(), reverse=True))  # without guidance first
    real = seen(training.evenly_spaced(REAL).images())
    table = []
    for name, flags in ROWS.items():
        folder = out / folder_name(name)
        row(folder, [f"train_vae.py {run}/vae/config.yaml --out {folder} {flags}"])
        autoencoder = Autoencoder.load(folder)
        distances = [frechet_distance(real, seen(decoded(autoencoder, latents))) for latents in samples.values()]
        table.append(
            [name, *(f"{each:.2f}" for each in psnrs(autoencoder, held_out)), *(f"{d:.0f}" for d in distances)]
        )
    heads = [f"noise {scale:g}, dB" if scale else "PSNR of the mean, dB" for scale in NOISES]
    print_table(["sigma", *heads, *(f"Fréchet, {name}" for name in samples)], table)


if __name__ == "__main__":
    main()
