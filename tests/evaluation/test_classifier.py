"""The classifier that is trained on the spot."""

import pytest
import torch
from torch import Tensor

from ldm.evaluation.classifier import Classifier, ClassifierTask, accuracy, shrunk, train_classifier

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.evaluation.classifier.STEPS", 40)


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gray images of 12 x 12 with one bright line, lying or standing."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 1, 12, 12), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, 2, (count,), generator=rng)
    for image, label, place in zip(images, labels, torch.randint(2, 10, (count,), generator=rng), strict=True):
        (image[0] if label else image[0].T)[place] = 250
    return images, labels


def arrows(count: int) -> Tensor:
    """Images that are bright at the top."""
    images = torch.randint(0, 60, (count, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, :, :3] += 150
    return images


def test_a_classifier_learns_classes_and_reads_images_that_it_has_not_seen() -> None:
    task = ClassifierTask(classes=2)
    classifier = train_classifier(task, *bars(200, 0), CPU)
    assert accuracy(classifier, task, *bars(100, 1)) > 0.95
    assert not classifier.training and classifier.features(torch.zeros(3, 1, 12, 12)).shape == (3, 128)


def test_without_classes_it_learns_by_how_many_quarter_turns_an_image_is_turned() -> None:
    task = ClassifierTask(classes=0)
    classifier = train_classifier(task, arrows(100), torch.zeros(0, dtype=torch.int64), CPU)
    assert accuracy(classifier, task, arrows(20), torch.zeros(0, dtype=torch.int64)) > 0.9


def test_a_classifier_is_the_same_again_on_any_number_of_threads() -> None:
    """And leaves the global generator and the threads as they were."""
    task, before = ClassifierTask(classes=2, flip=True), torch.get_rng_state()
    one = train_classifier(task, *bars(30, 2), CPU)
    assert torch.equal(torch.get_rng_state(), before)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = train_classifier(task, *bars(30, 2), CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_images_of_any_size_and_channels_are_taken_and_large_ones_shrunk() -> None:
    assert shrunk(torch.zeros(1, 2, 100, 30)).shape == (1, 2, 64, 30)
    assert Classifier((13, 3, 200), 4)(torch.zeros(2, 13, 3, 200)).shape == (2, 4)
