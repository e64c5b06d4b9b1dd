"""Draws the score that a denoiser of points in the plane has learned, over the exact one.

    python benchmarks/score.py score.png

The points are three Gaussians; one network has learned to denoise them at every noise level (`ldm verify score`). Thick
gray arrows are the exact score of the smoothed density, thin red ones (denoised - noisy) / sigma²; lengths are roots.
"""

import sys
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldm.randomness import generator
from ldm.verify.score import exact_score, mixture, trained

SIGMAS = (0.2, 0.5, 1.0)


def main(path: Path) -> None:
    torch.manual_seed(0)
    denoiser = trained(steps=2000, batch=1024)
    axis = torch.linspace(-1.7, 1.7, 13)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)
    figure = Figure(figsize=(10.5, 3.6))
    FigureCanvasAgg(figure)
    for number, sigma in enumerate(SIGMAS, start=1):
        points = mixture(600, generator(0, "picture", number))
        points = points + sigma * torch.randn(points.shape, generator=generator(0, "picture noise", number))
        exact = exact_score(places.double(), sigma)
        with torch.no_grad():
            learned = denoiser.score(places, torch.full((len(places),), sigma)).double()
        axes = figure.add_subplot(1, len(SIGMAS), number)
        axes.scatter(*points.T.numpy(), s=3, color="#4c78a8", alpha=0.35, linewidths=0)
        shortened = exact.norm(dim=1, keepdim=True).sqrt()  # or the small ones could not be seen
        scale = 0.75 * shortened.max().item() / (axis[1] - axis[0]).item()
        for score, color, width in ((exact, "#b0b0b0", 0.011), (learned, "#d62728", 0.0035)):
            arrows = (*places.T.numpy(), *(score / shortened).T.numpy())
            axes.quiver(*arrows, color=color, width=width, angles="xy", scale_units="xy", scale=scale)
        axes.set(title=f"σ = {sigma}", xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
    figure.subplots_adjust(0.01, 0.02, 0.99, 0.9, wspace=0.04)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
