"""The truths by name, each a file beside this one whose `figures(small=...)` measures it.

(Without torch: what is imported here answers a command line.)
"""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.truths.figure import Figure


def measured(name: str, *, small: bool = False) -> Iterator["Figure"]:
    """The figures of one truth, as they come; in miniature they are bounded less tightly."""
    found: Iterator[Figure] = importlib.import_module(f"ldm.truths.{name}").figures(small=small)
    return found


TRUTHS = {
    "linear": "a linear autoencoder finds the principal components",
    "denoising": "a linear denoising autoencoder is the best linear estimate, not the identity",
    "score": "who denoises knows the score: a network, an autoencoder, every parametrisation",
    "sparse": "planted atoms are found, and rates of activation kept",
    "contractive": "the penalty is the squared Jacobian, and shrinking the code does not help",
    "stacked": "stages freeze what is not theirs, and fine-tuning reaches the optimum",
    "variational": "a linear one is probabilistic PCA, and KL and statistics are what they say",
    "masked": "the encoder sees visible patches, the loss hidden ones, the features digits",
    "denoiser": "what each parametrisation promises its network",
    "samplers": "the order of each sampler on the exact path of Gaussian data",
}
