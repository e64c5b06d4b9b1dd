"""The truths by name, each a file beside this one whose `figures(small=...)` measures it.

(Without torch: what is imported here answers a command line.)
"""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.verify.check import Check


def run_checks(name: str, *, small: bool = False) -> Iterator["Check"]:
    """The figures of one truth, as they come; in miniature they are bounded less tightly."""
    found: Iterator[Check] = importlib.import_module(f"ldm.truths.{name}").figures(small=small)
    return found


CHECKS = {
    "linear": "a linear autoencoder finds the principal components",
    "denoising": "a linear denoising autoencoder is the best linear estimate, not the identity",
    "score": "who denoises knows the score: a network, an autoencoder, every parametrization",
    "sparse": "planted atoms are found, and rates of activation kept",
    "contractive": "the penalty is the squared Jacobian, and shrinking the code does not help",
    "stacked": "stages freeze what is not theirs, and fine-tuning reaches the optimum",
    "variational": "a linear one is probabilistic PCA, and KL and statistics are what they say",
    "masked": "the encoder sees visible patches, the loss hidden ones, the features digits",
    "denoiser": "what each parametrization promises its network",
    "samplers": "the order of each sampler on the exact path of Gaussian data",
}
