"""Benchmark of dequantizers: PSNR and feature distance by denoiser, centroids or cell centers, at each step.

    python benchmarks/dequantizer.py CODEC RUN DIFFUSION [--features FOLDER] [--images 24] [--steps 0.25,0.5,1,1.5,2,3]

takes held-out images of RUN, the run of train_vae.py that CODEC is of; DIFFUSION is a run of train_diffusion.py on the
same autoencoder, FOLDER a network for features, as benchmarks/lite.py writes one. The same files are decoded to the
centers of the cells, as they are (with centroids where these helped when the codec was fitted), with the denoiser, and
with a few steps of a sampler.
"""

import argparse
from dataclasses import replace

import torch

from ldm import Codec, LatentDiffusion
from ldm.compression.container import header_size
from ldm.compression.denoising import DenoisingRefinement
from ldm.compression.rate_distortion import ImageMeter
from ldm.data.datasets import open_dataset
from ldm.evaluation.feature_networks import open_perceptual_metric
from ldm.script_configs import vae_data_of
from ldm.shapes import rounded

SAMPLER_STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec")
    parser.add_argument("run")
    parser.add_argument("diffusion")
    parser.add_argument("--features", default="", help="a folder; without one there is no distance of features")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", default="0.25,0.5,1,1.5,2,3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = vae_data_of(options.run)
    assert data is not None, f"{options.run} is not a run of train_vae.py"
    images = open_dataset(data).split()[1].evenly_spaced(options.images).images()
    kind = "features" if options.features else "none"
    meter = ImageMeter(images, open_perceptual_metric(kind, options.features, torch.device("cpu")))
    codec = Codec.load(options.codec)
    denoiser = DenoisingRefinement.of(codec, LatentDiffusion.load(options.diffusion))
    ways = {
        "centers": lambda latents, cells: latents,
        "as they are": None,
        "denoised": denoiser,
        f"{SAMPLER_STEPS} steps": replace(denoiser, steps=SAMPLER_STEPS),
    }
    for step in map(float, options.steps.split(",")):
        files = codec.compress(images, step=step)
        sizes, headers = [len(file) for file in files], sum(map(header_size, files))
        for name, refine in ways.items():
            point = meter.point(step, sizes, headers, rounded(torch.stack(codec.decompress(files, refine))))
            measured = "  ".join(f"{key} {value:.4f}" for key, value in point.metrics.items())
            print(f"step {step:<5g} {point.bits_per_pixel:.3f} bpp  {name:12} {measured}", flush=True)


if __name__ == "__main__":
    main()
