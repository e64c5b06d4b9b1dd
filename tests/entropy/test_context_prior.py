"""The entropy model with context that an autoencoder learns with: it looks only back, and gains by what it sees."""

import pytest
import torch

from ldm.entropy.config import ENTROPY_MODELS
from ldm.entropy.context_prior import ContextPrior

WITH_CONTEXT = [kind for kind, facts in ENTROPY_MODELS.items() if facts.has_context]


@pytest.mark.parametrize("kind", WITH_CONTEXT)
def test_an_element_is_predicted_from_those_alone_that_are_coded_before_it(kind: str):
    prior, parities = ContextPrior(3, kind), ENTROPY_MODELS[kind].parities
    for parameter in (prior.output, prior.linear):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    values = torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    parity = (torch.arange(6)[:, None] + torch.arange(5)) % parities
    known = torch.zeros(3, 6, 5, dtype=torch.bool)
    for number, together in enumerate(ENTROPY_MODELS[kind].passes(3)):
        here = torch.zeros(3, 6, 5, dtype=torch.bool)
        for channel, each in together:
            here[channel] |= parity == each
        mean, log_scale = prior.predict(values)
        for predicted in (mean, log_scale):
            (gradient,) = torch.autograd.grad(predicted[0][here].sum(), values, retain_graph=True)
            assert not gradient[0][~known].any()
            assert gradient[0][known].any() == (number > 0)
        known |= here
    assert known.all()


def test_until_it_is_trained_it_is_the_mixture():
    prior = ContextPrior(3, "channel-checkerboard")
    values, cells = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((3, 1, 1), 0.3)
    torch.testing.assert_close(prior.nats(values, cells), prior.mixture.nats(values, cells))


def test_it_learns_that_channels_and_neighbors_are_alike():
    """White noise of .1 on one value per image, in two channels: a factorized model can at best see a spread of 1."""
    rng = torch.Generator().manual_seed(0)
    prior, cells = ContextPrior(2, "channel-checkerboard"), torch.full((2, 1, 1), 0.1)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)

    def cost() -> torch.Tensor:
        values = torch.randn(16, 1, 1, 1, generator=rng) + 0.1 * torch.randn(16, 2, 8, 8, generator=rng)
        return prior.nats(values, cells).mean()

    for _ in range(150):
        optimizer.zero_grad()
        cost().backward()
        optimizer.step()
    ideal, factorized = (0.5 * torch.tensor(17.08 * (0.01 + spread)).log() + 2.3 for spread in (0.0, 1.0))
    assert ideal < cost() < ideal + 0.5 * (factorized - ideal)
