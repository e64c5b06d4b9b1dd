"""Train a KL autoencoder on your own images, then a latent diffusion model in its latent space."""

from typing import Any

__all__ = ["AnomalyDetector", "Autoencoder", "Codec", "LatentDiffusion"]


def __getattr__(name: str) -> Any:
    """Import the classes when they are first asked for: torch takes a second, and --help should not."""
    if name == "AnomalyDetector":
        from ldm.anomaly.detector import AnomalyDetector

        return AnomalyDetector
    if name == "Autoencoder":
        from ldm.autoencoder.model import Autoencoder

        return Autoencoder
    if name == "Codec":
        from ldm.compression.codec import Codec

        return Codec
    if name == "LatentDiffusion":
        from ldm.pipeline import LatentDiffusion

        return LatentDiffusion
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
