"""The effective weight of the denoising loss: what ‖D − x‖² counts at each noise level, by density and weighting."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.diffusion.denoiser import EDM, Denoiser
from ldm.diffusion.losses.config import WEIGHTINGS, DenoisingObjectiveConfig, ObjectiveConfig
from ldm.diffusion.losses.noise_distribution import create_noise_distribution
from ldm.diffusion.losses.weighting import error_scale
from ldm.pictures import drawn, import_matplotlib

PRINTED = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class EffectiveWeight:
    """p(ln σ) weight(σ): the training loss is the integral over ln σ of this times the mean of ‖D − x‖² at σ.

    Two objectives with the same product are the same in expectation. A learned weighting is shown as it starts.
    """

    config: DenoisingObjectiveConfig
    denoiser: Denoiser

    @torch.no_grad()
    def at(self, sigma: Tensor) -> Tensor:
        """On ‖D − x‖², per unit of ln σ, in float64."""
        sigma = sigma.double()
        density = create_noise_distribution(self.config.noise_distribution).density(sigma)
        device = next(self.denoiser.parameters()).device
        scale = error_scale(self.config.weighting, self.denoiser, sigma.float().to(device))
        return density * scale.cpu().double() ** -2

    def share(self, sigma: Tensor) -> Tensor:
        """The same times EDM's c_out²: how much an EDM network of zeros, which errs by that, is told by each level."""
        return self.at(sigma) * EDM.c_out(sigma.double(), 1.0) ** 2

    def describe(self) -> str:
        """A line for people: the weight at a few noise levels."""
        values = ", ".join(f"{float(self.at(torch.tensor([sigma]))):.3g} at {sigma:g}" for sigma in PRINTED)
        facts = WEIGHTINGS[self.config.weighting.kind]
        kind = f"{self.config.noise_distribution.kind} density of ln σ times {facts.formula}"
        return f"weight of ‖D - x‖²  {values} ({kind}{', u being 0 at the start' if facts.learned else ''})"

    def draw_once(self, path: Path, *, dry: bool, warn: Callable[[str], None]) -> None:
        """Save the picture unless it is there or the run is `dry`; what goes wrong is a warning."""
        if not dry and not path.exists():
            drawn("the weight of the loss", lambda: self.draw(path), warn=warn)

    def draw(self, path: Path) -> None:
        """Save the weight over σ, and beside it what of the loss each level is before training."""
        import_matplotlib()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        sigma = torch.logspace(-3, 3, 601, dtype=torch.float64)
        figure = Figure(figsize=(9, 3))
        FigureCanvasAgg(figure)
        curves = {"weight on ‖D − x‖² per unit of ln σ": self.at(sigma), "times σ² / (1 + σ²)": self.share(sigma)}
        for number, (title, values) in enumerate(curves.items(), start=1):
            axes = figure.add_subplot(1, 2, number)
            shown = values > 0
            axes.plot(sigma[shown].tolist(), values[shown].tolist())
            axes.set_xscale("log")
            axes.set_yscale("log" if number == 1 else "linear")
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("σ", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)
        figure.subplots_adjust(0.06, 0.16, 0.99, 0.9, wspace=0.14)  # a layout that measures labels draws them all twice
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def effective_weight(config: ObjectiveConfig, denoiser: Denoiser) -> EffectiveWeight | None:
    """That of an objective; None of one that does not compare an answer with the clean latent."""
    return EffectiveWeight(config, denoiser) if config.kind == "denoising" else None
