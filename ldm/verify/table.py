"""The closed-form checks by name, each a file beside this one whose `checks(small=...)` measures it.

(Without torch: what is imported here answers a command line.)
"""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.verify.check import Check


def run_checks(name: str, *, small: bool = False) -> Iterator["Check"]:
    """The values of one check, as they come; in miniature they are bounded less tightly."""
    values: Iterator[Check] = importlib.import_module(f"ldm.verify.{name}").checks(small=small)
    return values


CHECKS = {
    "linear": "a linear autoencoder finds the principal components (PCA)",
    "lapped": "the lapped transform that a residual autoencoder starts at, and the noise of its code",
    "denoising": "a linear denoising autoencoder is the Wiener filter, not the identity",
    "score": "a denoiser knows the score: a network, an autoencoder, every parametrization",
    "sparse": "planted atoms are found, and target rates of activation kept",
    "contractive": "the penalty is the squared Jacobian, and shrinking the code does not help",
    "stacked": "stages freeze what is not theirs, and fine-tuning reaches the optimum",
    "variational": "a linear VAE is probabilistic PCA; KL and latent statistics are right",
    "masked": "the encoder sees visible patches, the loss hidden ones, the features digits",
    "denoiser": "each parametrization preconditions its network as the table says",
    "gaussian": "the Gaussian skip is the best linear denoiser, fitted for unseen latents",
    "samplers": "the order of each sampler on the exact path of Gaussian data",
    "consistency": "consistency functions that are known, their sampler, and the tuning of one",
    "anomaly": "scores of known laws, planted anomalies, the false-alarm rate, and the metrics",
    "compression": "rate and distortion of a Gaussian source are those of its quantizer, the gap to R(D) as known",
    "contracts": "every part in the tables keeps its contract",
}
