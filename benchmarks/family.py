"""The autoencoder family on digits and on emoji: a table of what each member reconstructs, and what its code is like.

    python benchmarks/family.py runs/family [--data digits emoji] [--only linear bottleneck ...]

Every row is a config with flags, trained by train_vae.py and measured by `ldm evaluate --probe flat` on held-out
images; the commands are printed. Seconds are of CPU, of the training command on one thread. The emoji lie in
../shared/data; where they are not, they are left out. A row that is there already is not run again.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from runs import ROOT, SHARED, Metrics, cells, folder_name, from_root, print_table, row

EMOJI = SHARED / "noto-emoji-64"
SALT = "--objective.corruption.kind salt-and-pepper"
HIDE = "--objective.corruption.kind mask --objective.corruption.unit element --objective.corruption.fraction 0.5"
L1 = "--autoencoder.bottleneck.k 0 --objective.penalties.aux_k null --objective.penalties.l1.weight 0.5"
KL_SPARSITY = (
    "--autoencoder.bottleneck.k 0 --objective.penalties.aux_k null --objective.penalties.kl_sparsity.rate 0.05"
    " --autoencoder.bottleneck.activation sigmoid --autoencoder.bottleneck.channels 256"
)
CONVOLUTIONAL = (  # the config's encoder stays linear, and a member of the family learns its own
    "--autoencoder.bottleneck.kind identity --autoencoder.bottleneck.channels 4 --autoencoder.network.blocks 1"
    " --autoencoder.network.encoder-lr-factor 0.03"
)
MEMBERS = {
    "linear": ("autoencoder/linear", ""),
    "bottleneck": ("autoencoder/plain", ""),
    "bottleneck, convolutional": ("vae/mnist5k", CONVOLUTIONAL),
    "denoising, Gaussian": ("autoencoder/denoising", ""),
    "denoising, salt and pepper": ("autoencoder/denoising", SALT),
    "denoising, masking": ("autoencoder/denoising", HIDE),
    "sparse, top-k": ("autoencoder/sparse", ""),
    "sparse, L1": ("autoencoder/sparse", L1),
    "sparse, rate": ("autoencoder/sparse", KL_SPARSITY),
    "contractive": ("autoencoder/contractive", ""),
    "stacked": ("autoencoder/stacked", ""),
    "masked": ("autoencoder/masked", ""),
    "KL": ("vae/mnist5k", ""),
}
ON_EMOJI = (
    "--data.kind folder --data.path {data} --data.size 64 --data.channels 3 --data.flip true --run.batch-size 32"
    " --run.steps {steps}"
)
STEPS = {"vae/mnist5k": 400}  # on emoji; of the others 1,000
PATCH = {"autoencoder/masked": " --autoencoder.network.patch 8"}
COLUMNS = {
    "numbers": ("numbers", "{:,}"),
    "PSNR": ("psnr", "{:.1f}"),
    "PCA": ("pca_psnr", "{:.1f}"),
    "restored": ("restored_psnr", "{:.1f}"),
    "linear restored": ("linear_restoration_psnr", "{:.1f}"),
    "kNN": ("knn_accuracy", "{:.1%}"),
    "linear probe": ("linear_accuracy", "{:.1%}"),
    "Jacobian": ("encoder_jacobian", "{:.2f}"),
    "not 0": ("nonzero_fraction", "{:.0%}"),
    "CPU s": ("seconds", "{:.0f}"),
}


def member_row(out: Path, data: str, member: str) -> Metrics:
    """The metrics of one row."""
    config, flags = MEMBERS[member]
    run = out / folder_name(data, member)
    if data == "emoji":
        on_emoji = ON_EMOJI.format(data=os.path.relpath(EMOJI, ROOT), steps=STEPS.get(config, 1000))
        flags = f"{on_emoji}{PATCH.get(config, '')} {flags}"
    commands = [
        f"train_vae.py configs/{config}.yaml --out {run} {flags}".rstrip(),
        f"-m ldm evaluate {run} --probe flat --out {run}/evaluation.json",
    ]

    def measure(evaluation: dict[str, Any]) -> Metrics:
        report = json.loads((run / "report.json").read_text())
        numbers = math.prod(evaluation["protocol"]["latent"])
        return {
            **{name: value for name, value in report.items() if "_psnr" in name},
            "numbers": numbers,
            "nonzero_fraction": evaluation["metrics"]["code_l0"] / numbers,
        }

    return row(run, commands, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", default=["digits", "emoji"], choices=["digits", "emoji"])
    parser.add_argument("--only", nargs="+", default=list(MEMBERS), choices=list(MEMBERS))
    options = parser.parse_args()
    out, rows = from_root(options.out), []
    for data in options.data:
        if data == "emoji" and not EMOJI.exists():
            print(f"emoji: left out, {EMOJI} is not there")
            continue
        for member in options.only:
            metrics = member_row(out, data, member)
            shown = dict(zip(COLUMNS, cells(COLUMNS, metrics), strict=True))
            if (metrics["pca_psnr"] or 0) > 99:  # as many components as an image has values
                shown["PCA"] = "exact"
            rows.append([data, member, *shown.values()])
    print_table(["data", "member", *COLUMNS], rows)


if __name__ == "__main__":
    main()
