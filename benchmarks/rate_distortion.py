"""Codecs that are trained whole, one for each weight of the rate, beside the classical codecs on the same images.

    python benchmarks/rate_distortion.py --data IMAGES --out OUT --rates 1e-3,3e-3,1e-2,3e-2 [--run.steps 4000 ...]

For each weight, `train_vae.py CONFIG --objective.rate WEIGHT` with the flags that follow, then `ldm codec fit`; what is
there already in OUT is not made again. Then the curves on held-out images: the trained codecs, each at the step that it
has learned, and each of them over all steps; with --posthoc RUN, a codec fitted to an autoencoder that was trained
without a rate; and those of Pillow. OUT/curves.json and OUT/curves.png hold them, and the table is printed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ldm import Codec
from ldm.compression.fitting import learned_step
from ldm.compression.rate_distortion import Curve, ImageMeter, as_json, classical_curves, curve_of_codec, draw, table
from ldm.data.datasets import open_dataset
from ldm.script_configs import vae_data_of
from ldm.training.devices import choose_device

ROOT = Path(__file__).parent.parent


def codec_of(run: Path, folder: Path, flags: list[str]) -> Codec:
    """The codec of a run, fitted where it is not there yet."""
    if not folder.exists():
        called("-m", "ldm", "codec", "fit", str(run), "--out", str(folder), *flags)
    return Codec.load(folder).to(choose_device(None))


def called(*arguments: str) -> None:
    """Run Python with these arguments in this repository, or stop."""
    print("python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--data", help="images; those of the config where it is left out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rates", default="1e-3,3e-3,1e-2,3e-2")
    parser.add_argument("--config", default="configs/autoencoder/compression.yaml")
    parser.add_argument("--posthoc", type=Path, help="a run of train_vae.py on the same images")
    parser.add_argument("--images", type=int, default=64, help="held-out ones that are compressed")
    parser.add_argument("--codec-steps", default="1000", help="of fitting each entropy model")
    options, flags = parser.parse_known_args()
    out, fit_flags = options.out.resolve(), ["--steps", options.codec_steps]
    data = ["--data.path", str(Path(options.data).resolve())] if options.data else []
    codecs: dict[str, Codec] = {}
    for rate in options.rates.split(","):
        run = out / f"rate-{rate}"
        called("train_vae.py", options.config, *data, "--objective.rate", rate, *flags, "--out", str(run))
        codecs[rate] = codec_of(run, out / f"codec-{rate}", fit_flags)
    described = vae_data_of(str(out / f"rate-{options.rates.split(',')[0]}"))
    assert described is not None
    _, held_out = open_dataset(described).split()
    meter = ImageMeter(held_out.evenly_spaced(options.images).images())

    trained, whole = [], []
    for rate, codec in codecs.items():
        step = learned_step(codec.autoencoder)
        assert step is not None
        trained += curve_of_codec(codec, meter, name=rate, steps=[step]).points
        whole.append(curve_of_codec(codec, meter, name=f"ldm, rate {rate}, all steps"))
    curves = [Curve("ldm, trained whole", sorted(trained, key=lambda point: point.bits_per_pixel)), *whole]
    if options.posthoc is not None:
        codec = codec_of(options.posthoc.resolve(), out / "codec-posthoc", fit_flags)
        curves.append(curve_of_codec(codec, meter, name="ldm, post hoc"))
    curves += classical_curves(meter, print)
    (out / "curves.json").write_text(json.dumps(as_json(curves), indent=2))
    draw(curves, out / "curves.png")
    print(table(curves))


if __name__ == "__main__":
    main()
