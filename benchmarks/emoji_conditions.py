"""Conditions of emoji: category, skin tone and caption, as metadata of a new folder that links to the images.

    python benchmarks/emoji_conditions.py NOTO_EMOJI_FOLDER emoji
    python train_vae.py configs/vae/folder.yaml --data.path emoji --out runs/emoji/vae
    python train_diffusion.py configs/diffusion/folder.yaml --autoencoder runs/emoji/vae --out runs/emoji/diffusion \\
        --data.conditions '{label: {kind: class}, tone: {kind: class}, text: {kind: text, length: 16}}'
    python sample.py runs/emoji/diffusion --label people-body --tone dark --prompt "woman cook" --out cooks.png
    python benchmarks/emoji_conditions.py tones SAMPLES...    # the tone that the skin in each image has

The tone is that of the modifiers U+1F3FB ... U+1F3FF among the code points of a file's name, `none` without one and
`several` where two people have different ones. The category and the caption are those of metadata.jsonl.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
# The color that Noto draws skin of each tone in, RGB; without a tone it is yellow.
SKIN = {
    "none": (255, 202, 40),
    "light": (249, 221, 189),
    "medium-light": (224, 187, 149),
    "medium": (186, 141, 104),
    "medium-dark": (165, 108, 67),
    "dark": (112, 83, 74),
}
WITHIN = 14  # of 255, in each channel


def tone_of(name: str) -> str:
    """The skin tone in the code points of a file's name."""
    found = {TONES[code] for code in Path(name).stem.split("-") if code in TONES}
    return found.pop() if len(found) == 1 else "several" if found else "none"


def write(source: Path, out: Path) -> None:
    """A folder with a link to each image, and metadata with the tone."""
    out.mkdir(parents=True)  # and never into a folder that is there
    counts = Counter[str]()
    with open(out / "metadata.jsonl", "w") as file:
        for line in (source / "metadata.jsonl").read_text().splitlines():
            row = json.loads(line)
            place = out / row["file_name"]
            place.parent.mkdir(parents=True, exist_ok=True)
            os.symlink((source / row["file_name"]).resolve(), place)
            tone = tone_of(row["file_name"])
            file.write(json.dumps({**row, "tone": tone}) + "\n")
            counts[tone] += 1
    print(f"{out}: " + ", ".join(f"{tone} {count}" for tone, count in counts.most_common()))


def seen_tone(image: np.ndarray) -> str:
    """The tone whose color most pixels are nearly have; `nothing` where hardly any is."""
    counts = {
        tone: int((np.abs(image.astype(int) - np.array(color)).max(-1) <= WITHIN).sum()) for tone, color in SKIN.items()
    }
    most = max(counts, key=lambda tone: counts[tone])
    return most if counts[most] >= 0.02 * image.shape[0] * image.shape[1] else "nothing"


def tones(folders: list[Path]) -> None:
    """How many images of each folder show which tone."""
    for folder in folders:
        images = [np.asarray(Image.open(file).convert("RGB")) for file in sorted(folder.rglob("*.png"))]
        counts = Counter(seen_tone(image) for image in images)
        print(f"{folder}: " + ", ".join(f"{tone} {count}" for tone, count in counts.most_common()))


if __name__ == "__main__":
    if len(sys.argv) >= 3 and sys.argv[1] == "tones":
        tones([Path(argument) for argument in sys.argv[2:]])
    elif len(sys.argv) == 3:
        write(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        sys.exit("usage: python benchmarks/emoji_conditions.py SOURCE OUT | tones FOLDER...")
