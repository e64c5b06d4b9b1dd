"""The autoencoder family on digits and on emoji: a table of what each member gives back, and what its code is like.

    python benchmarks/family.py runs/family [--data digits emoji] [--only linear plain ...]

Every row is a config with flags, trained by train_vae.py and measured by `ldm evaluate --probe flat` on held-out
images; the command is printed. Seconds are of CPU, of the training command on one thread. The emoji lie in
../shared/data; where they are not, they are left out. A row that is there already is not run again.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EMOJI = ROOT.parent / "shared" / "data" / "noto-emoji-64"
SALT = "--objective.corruption.kind salt-and-pepper"
HIDE = "--objective.corruption.kind mask --objective.corruption.unit element --objective.corruption.fraction 0.5"
L1 = "--autoencoder.bottleneck.k 0 --objective.penalties.aux_k null --objective.penalties.l1.weight 0.5"
RATE = (
    "--autoencoder.bottleneck.k 0 --objective.penalties.aux_k null --objective.penalties.kl_sparsity.rate 0.05"
    " --autoencoder.bottleneck.activation sigmoid --autoencoder.bottleneck.channels 256"
)
POINT = "--autoencoder.bottleneck.kind identity --autoencoder.bottleneck.channels 4"
MEMBERS = {
    "linear": ("autoencoder/linear", ""),
    "bottleneck": ("autoencoder/plain", ""),
    "bottleneck, convolutional": ("vae/mnist5k", POINT),
    "denoising, Gaussian": ("autoencoder/denoising", ""),
    "denoising, salt and pepper": ("autoencoder/denoising", SALT),
    "denoising, masking": ("autoencoder/denoising", HIDE),
    "sparse, top-k": ("autoencoder/sparse", ""),
    "sparse, L1": ("autoencoder/sparse", L1),
    "sparse, rate": ("autoencoder/sparse", RATE),
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
    "not 0": ("share", "{:.0%}"),
    "CPU s": ("seconds", "{:.0f}"),
}


def ran(*command: str) -> float:
    """Runs a command of ours on one thread; its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def row(out: Path, data: str, member: str) -> dict[str, float | None]:
    """The figures of one row, from where they were written or from a run of its own."""
    config, flags = MEMBERS[member]
    run = out / f"{data}-{member.replace(',', '').replace(' ', '-').lower()}"
    if data == "emoji":
        place = ON_EMOJI.format(data=os.path.relpath(EMOJI, ROOT), steps=STEPS.get(config, 1000))
        flags = f"{place}{PATCH.get(config, '')} {flags}"
    command = f"train_vae.py configs/{config}.yaml --out {run} {flags}".rstrip()
    print(f"python {command}", flush=True)
    report = run / "row.json"
    if not report.exists() or json.loads(report.read_text())["command"] != command:
        shutil.rmtree(run, ignore_errors=True)  # half a row cannot be timed
        seconds = ran(*shlex.split(command))
        ran("-m", "ldm", "evaluate", str(run), "--probe", "flat", "--out", str(run / "evaluation.json"))
        found = json.loads((run / "evaluation.json").read_text())
        figures, latent = found["figures"], found["protocol"]["latent"]
        figures |= {
            name: value for name, value in json.loads((run / "report.json").read_text()).items() if "_psnr" in name
        }
        figures["numbers"] = latent[0] * latent[1] * latent[2]
        figures["share"] = figures["code_l0"] / figures["numbers"]
        report.write_text(json.dumps({"command": command, "figures": figures | {"seconds": seconds}}, indent=2))
    return json.loads(report.read_text())["figures"]  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", default=["digits", "emoji"], choices=["digits", "emoji"])
    parser.add_argument("--only", nargs="+", default=list(MEMBERS), choices=list(MEMBERS))
    options = parser.parse_args()
    out = Path(os.path.relpath(options.out, ROOT))
    os.chdir(ROOT)
    lines = []
    for data in options.data:
        if data == "emoji" and not EMOJI.exists():
            print(f"emoji: left out, {EMOJI} is not there")
            continue
        for member in options.only:
            figures = row(out, data, member)
            cells = []
            for key, form in COLUMNS.values():
                value = figures.get(key)
                # As many components as an image has values give it back as it was.
                exact = key == "pca_psnr" and value is not None and value > 99
                cells.append("" if value is None else "exact" if exact else form.format(value))
            lines.append(f"| {data} | {member} | {' | '.join(cells)} |")
    print("\n| data | member | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 2))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
