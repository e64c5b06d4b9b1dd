"""Classical anomaly detectors of pixels: those of scikit-learn, and, in a process of its own, those of PyOD.

    python benchmarks/classical.py DATA.npz SCORES.npz

is that process, run by benchmarks/anomaly.py with the Python that has PyOD: DATA.npz holds the vectors `training` and
`test`, SCORES.npz gets the scores of the test vectors under each detector's name, and the CPU seconds.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Vectors = np.ndarray
Score = Callable[[Vectors, Vectors], np.ndarray]  # of training and test vectors
COMPONENTS = (8, 16, 32, 64, 128)
PYOD = {  # its detectors with their defaults
    "ECOD": "ecod",
    "KNN": "knn",
    "LOF": "lof",
    "PCA": "pca",
    "KPCA": "kpca",
    "GMM": "gmm",
    "CBLOF": "cblof",
    "INNE": "inne",
    "AutoEncoder": "auto_encoder",
    "LUNAR": "lunar",
}


def principal(training: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """Mean, principal directions as rows, and the variances along them."""
    mean = training.mean(0)
    _, values, directions = np.linalg.svd(training - mean, full_matrices=False)
    return mean, directions, values**2 / len(training)


def pca_residual(components: int) -> Score:
    """Squared distance from the subspace of so many principal components."""

    def score(training: Vectors, test: Vectors) -> np.ndarray:
        mean, directions, _ = principal(training)
        centered = test - mean
        return (centered**2).sum(1) - ((centered @ directions[:components].T) ** 2).sum(1)

    return score


def chosen_components(training: Vectors, folds: int = 5) -> int:
    """How many components make the likeliest probabilistic PCA of normal images left out (cross-validation)."""
    order, size = np.random.default_rng(0).permutation(len(training)), training.shape[1]
    possible = [count for count in COMPONENTS if count < len(training) * (folds - 1) // folds - 1]
    total = dict.fromkeys(possible, 0.0)
    for fold in range(folds):
        left_out = training[order[fold::folds]]
        mean, directions, variances = principal(training[np.setdiff1d(order, order[fold::folds])])
        squares = ((left_out - mean) @ directions.T) ** 2
        lengths = ((left_out - mean) ** 2).sum(1)
        for count in total:
            rest = variances[count:].sum() / (size - count)
            distance = (squares[:, :count] / variances[:count]).sum(1) + (lengths - squares[:, :count].sum(1)) / rest
            total[count] += float((distance + np.log(variances[:count]).sum() + (size - count) * np.log(rest)).sum())
    return min(total, key=lambda count: total[count])


def knn(training: Vectors, test: Vectors) -> np.ndarray:
    """Mean distance to the 5 nearest training images."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=5).fit(training).kneighbors(test)[0].mean(1)  # type: ignore[no-any-return]


def mahalanobis(training: Vectors, test: Vectors) -> np.ndarray:
    """Squared Mahalanobis distance with the covariance of Ledoit and Wolf (2004)."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean, directions, variances = principal(training)
    share = float(ledoit_wolf_shrinkage(training))
    floor = share * variances.sum() / training.shape[1]
    centered = test - mean
    along = (centered @ directions.T) ** 2
    return ((centered**2).sum(1) - along.sum(1)) / floor + (along / ((1 - share) * variances + floor)).sum(1)


def isolation_forest(training: Vectors, test: Vectors) -> np.ndarray:
    """scikit-learn's IsolationForest."""
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(random_state=0).fit(training).score_samples(test)  # type: ignore[no-any-return]


def one_class_svm(training: Vectors, test: Vectors) -> np.ndarray:
    """scikit-learn's OneClassSVM."""
    from sklearn.svm import OneClassSVM

    return -OneClassSVM().fit(training).score_samples(test)  # type: ignore[no-any-return]


CLASSICAL: dict[str, Score] = {
    **{f"PCA residual, K = {count}": pca_residual(count) for count in COMPONENTS},
    "kNN-5": knn,
    "Mahalanobis, Ledoit-Wolf": mahalanobis,
    "IsolationForest": isolation_forest,
    "OneClassSVM": one_class_svm,
}
CHOSEN = "PCA residual, K chosen on normal images"


def classical_scores(training: Vectors, test: Vectors) -> dict[str, np.ndarray]:
    """The scores of the test vectors by each detector of the table that so many training vectors allow."""
    possible = [name for name in CLASSICAL if "K = " not in name or int(name.split()[-1]) < len(training) - 1]
    found = {name: CLASSICAL[name](training, test) for name in possible}
    found[CHOSEN] = found[f"PCA residual, K = {chosen_components(training)}"]
    return found


def main(data: Path, out: Path) -> None:
    """Fit each detector of PyOD to the training vectors, and write its scores of the others."""
    import importlib

    import torch

    torch.set_num_threads(1)
    vectors, found = np.load(data), {}
    for name, module in PYOD.items():
        detector = getattr(importlib.import_module(f"pyod.models.{module}"), name)
        own = {"hidden_neuron_list": vectors["widths"].tolist(), "verbose": 0} if "widths" in vectors else {}
        if own and name != "AutoEncoder":
            continue
        fitted = detector(**own).fit(vectors["training"])
        began = time.process_time()
        found[name] = fitted.decision_function(vectors["test"])
        found[f"{name} seconds"] = np.array(time.process_time() - began)
    np.savez(out, **found)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python benchmarks/classical.py DATA.npz SCORES.npz")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
