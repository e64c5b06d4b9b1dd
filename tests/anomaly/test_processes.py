"""A detector is the same for one and for two processes."""

import torch

from ldm.anomaly.config import DetectorConfig
from ldm.anomaly.detector import AnomalyDetector
from ldm.terminal import exit_code_of
from ldm.training.processes import Processes
from tests.support.normal_images import data_of, subspace_images
from tests.support.scripts import forked, together


def fitting() -> int:
    """A script that fits a detector and prints all that its verdicts depend on, to the last bit."""

    def main(_: list[str]) -> None:
        processes = Processes("cpu")
        config = DetectorConfig(scores=("reconstruction", "latent-density"), alpha=0.1)
        normal = data_of(subspace_images(90, (1, 8, 8)))
        detector = AnomalyDetector.fit("pca:3", normal, config, processes=processes, batch_size=7)
        images = list(normal.chunks(16))
        scores = processes.map(len(images), lambda number: detector.score(images[number].images()).without_maps())
        found = torch.cat([each.pred_score for each in scores])
        print(f"{detector.threshold!r} {detector.map_threshold!r} {found.tolist()}")
        processes.end()

    return exit_code_of(main, [])


def test_two_processes_fit_and_score_as_one_does_to_the_last_bit() -> None:
    alone = forked(fitting)[1]()
    assert alone.code == 0 and len(alone.out) > 500, alone
    for outcome in together([fitting] * 2):
        assert outcome.code == 0 and outcome.out.strip().splitlines()[-1] == alone.out.strip().splitlines()[-1], outcome
