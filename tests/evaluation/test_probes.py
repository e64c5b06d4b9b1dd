"""kNN and linear probes on data whose answer is known, and against scikit-learn."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.evaluation.probes import (
    MAX_PIXELS,
    PROBES,
    ProbeInputs,
    accuracy,
    knn_accuracy,
    linear_accuracy,
    probe_inputs,
    square_for,
    standardized_channels,
)


def blobs(count: int, seed: int, *, features: int = 8, classes: int = 4, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    """Points around as many centers as there are classes, the same for every seed; they overlap."""
    centers = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return centers[labels] + spread * torch.randn(count, features, generator=generator), labels


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 1.0])
def test_the_linear_probe_is_the_logistic_regression_of_scikit_learn(penalty):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, labels = blobs(400, 0)
    test, truth = blobs(1500, 1)
    train, test = train * torch.arange(1, 9) + 5, test * torch.arange(1, 9) + 5  # to be standardized
    scaler = StandardScaler().fit(train.double().numpy())
    theirs = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-10, max_iter=5000)
    theirs.fit(scaler.transform(train.double().numpy()), labels.numpy())
    expected = theirs.score(scaler.transform(test.double().numpy()), truth.numpy())
    assert 0.5 < expected < 0.95
    assert linear_accuracy(train, labels, test, truth, penalty=penalty) == expected


@pytest.mark.parametrize("neighbors", [1, 2, 7, 20])
def test_knn_votes_as_a_loop_over_the_rows_does(neighbors):
    """Even numbers of neighbors and four classes: there are ties, and the nearest of the tied decides."""
    train, labels = (each.double() if each.is_floating_point() else each for each in blobs(150, 0))
    test, truth = blobs(1100, 1)  # more than one chunk
    right = 0
    for row, label in zip(test.double().numpy(), truth.tolist(), strict=True):
        cosines = train.numpy() @ row / np.linalg.norm(train.numpy(), axis=1) / np.linalg.norm(row)
        voters = labels.numpy()[np.argsort(-cosines)[:neighbors]].tolist()
        right += max(dict.fromkeys(voters), key=voters.count) == label  # the first of the largest
    assert knn_accuracy(train, labels, test.double(), truth, neighbors=neighbors) == right / len(test)


def test_the_nearest_of_classes_with_as_many_votes_wins():
    train = torch.tensor([[1.0, 0.3], [1.0, 0.1], [1.0, 0.2], [1.0, 0.4]])
    labels, test = torch.tensor([0, 1, 0, 1]), torch.tensor([[1.0, 0.0]])
    for truth in (0, 1):
        assert knn_accuracy(train, labels, test, torch.tensor([truth]), neighbors=4) == truth
    assert knn_accuracy(train, labels, test, torch.tensor([0]), neighbors=3) == 1


def test_fewer_training_rows_than_neighbors_all_vote():
    train, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1, 1])
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), neighbors=20) == 1


def test_knn_looks_at_directions_alone():
    train, labels = blobs(200, 0)
    test, truth = blobs(100, 1)
    lengths = torch.rand(200, 1, generator=torch.Generator().manual_seed(2)) + 0.5
    assert knn_accuracy(train * lengths, labels, 3 * test, truth) == knn_accuracy(train, labels, test, truth)


def test_what_is_not_there_in_training_cannot_mislead_the_linear_probe():
    """A feature that is constant up to rounding in training, and enormous in the test, is left out."""
    train, labels = blobs(200, 0)
    test, truth = blobs(300, 1)
    dead, noise = torch.full((200, 1), 0.1), torch.randn(300, 1, generator=torch.Generator().manual_seed(2))
    dead[::3] = float(np.nextafter(np.float32(0.1), np.float32(1)))
    found = linear_accuracy(torch.cat([train, dead], 1), labels, torch.cat([test, 1e6 * noise], 1), truth)
    assert found == linear_accuracy(train, labels, test, truth)


def test_the_linear_probe_does_not_depend_on_the_scale_of_a_feature():
    train, labels = blobs(300, 0)
    test, truth = blobs(300, 1)
    scale = torch.logspace(-3, 3, 8)
    assert linear_accuracy(train * scale, labels, test * scale, truth) == linear_accuracy(train, labels, test, truth)


@pytest.mark.parametrize("probe", [knn_accuracy, linear_accuracy])
def test_classes_apart_are_told_apart_and_labels_by_lot_are_not(probe):
    train, labels = blobs(400, 0, spread=0.05)
    test, truth = blobs(400, 1, spread=0.05)
    assert probe(train, labels, test, truth) == 1
    lots = torch.randint(0, 4, (2400,), generator=torch.Generator().manual_seed(3))
    rows, _ = blobs(2400, 2)
    chance, error = 1 / 4, (1 / 4 * 3 / 4 / 2000) ** 0.5
    assert abs(probe(rows[:400], lots[:400], rows[400:], lots[400:]) - chance) < 4 * error


@pytest.mark.parametrize("probe", [knn_accuracy, linear_accuracy])
def test_a_class_that_is_not_in_training_is_never_found(probe):
    train, labels = blobs(100, 0, classes=2)
    assert probe(train, labels, train, labels + 2) == 0


def test_the_linear_probe_runs_without_gradients_around_it():
    train, labels = blobs(100, 0)
    with torch.no_grad():
        inside = linear_accuracy(train, labels, train, labels)
    assert inside == linear_accuracy(train, labels, train, labels) > 0.5


def test_features_are_all_numbers_of_a_latent_or_the_mean_of_each_channel():
    latents, images = torch.randn(3, 4, 2, 5), torch.randn(3, 1, 8, 20)
    assert torch.equal(probe_inputs(latents, images, "flat").latents, latents.flatten(1))
    assert torch.equal(probe_inputs(latents, images, "mean").latents, latents.mean((2, 3)))
    assert torch.equal(probe_inputs(latents, images, "mean").pixels, images)  # few enough


@pytest.mark.parametrize(
    ("shape", "square"),
    [((1, 64, 64), 1), ((1, 64, 65), 2), ((3, 32, 32), 1), ((3, 64, 64), 2), ((3, 256, 192), 7), ((5000, 4, 2), 4)],
)
def test_pixels_are_averaged_down_to_what_is_looked_at(shape, square):
    assert square_for(shape) == square
    small = probe_inputs(torch.zeros(2, 1, 1, 1), torch.full((2, *shape), 0.5), "flat").pixels
    assert small[0].numel() <= max(MAX_PIXELS, shape[0])
    assert torch.allclose(small, torch.full_like(small, 0.5)), "at the borders too"


def test_pixels_are_standardized_per_channel_over_the_training_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 2, 3, 3, generator=generator) * torch.tensor([2.0, 0.5]).view(2, 1, 1) + 1
    train, test = standardized_channels(images, images[:5])
    per_channel = train.view(50, 2, 9).transpose(0, 1).flatten(1)
    assert torch.allclose(per_channel.mean(1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(per_channel.std(1, correction=0), torch.ones(2), atol=1e-6)
    assert torch.equal(test, train[:5])


def test_a_channel_that_never_varies_is_not_blown_up():
    _, test = standardized_channels(torch.full((7, 1, 3, 3), 0.1), torch.full((1, 1, 3, 3), 0.4))
    assert torch.allclose(test, torch.full((1, 9), 0.3))


def test_latents_that_are_the_standardized_pixels_have_the_accuracies_of_the_pixels():
    rows, labels = blobs(300, 0, features=16)
    images = rows.view(300, 1, 4, 4)
    latents = standardized_channels(images, images)[0].view_as(images)
    parts = [probe_inputs(latents[half], images[half], "flat") for half in (slice(0, 200), slice(200, None))]
    truth = labels[200:]
    found = {name: accuracy(name, parts[0], labels[:200], parts[1], truth) for name in PROBES}
    assert found["knn_accuracy"] == found["pixel_knn_accuracy"] > 0.5
    assert found["linear_accuracy"] == found["pixel_linear_accuracy"] > 0.5


def test_the_parts_are_joined_in_their_order():
    parts = [ProbeInputs(torch.full((2, 3), float(n)), torch.full((2, 1, 1, 1), float(n))) for n in range(3)]
    whole = ProbeInputs.joined(parts, torch.device("cpu"))
    assert whole.latents[:, 0].tolist() == whole.pixels.flatten().tolist() == [0, 0, 1, 1, 2, 2]
