"""Conditions of emoji: category, skin tone and caption, as metadata of a new folder that links to the images.

    python benchmarks/emoji_conditions.py NOTO_EMOJI_FOLDER emoji
    python train_vae.py configs/vae/folder.yaml --data.path emoji --out runs/emoji/vae
    python train_diffusion.py configs/diffusion/folder.yaml --autoencoder runs/emoji/vae --out runs/emoji/diffusion \\
        --data.conditions '{label: {kind: class}, tone: {kind: class}, text: {kind: text, length: 16}}'
    ldm evaluate runs/emoji/diffusion --generate 1000         # how many are read as their category, and as their tone
    python sample.py runs/emoji/diffusion --num 300 --out cooks --label people-body --prompt "woman cook" \\
        --tone light,medium-light,medium,medium-dark,dark
    python benchmarks/emoji_conditions.py score cooks         # how many have skin of the tone that they were asked for

The tone is that of the modifiers U+1F3FB ... U+1F3FF among the code points of a file's name, `none` without one and
`several` where two people have different ones. The category and the caption are those of metadata.jsonl. Skin is read
from the pixels by the colors that Noto has for it, of real images (`score emoji/people-body`) as of samples.

Where nothing can be installed for the text encoder (wordllama), `words emoji emoji-words` writes the embeddings of the
captions' words elsewhere, beforehand: `{kind: text, length: 16, encoder: emoji-words}`.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

# isort: off
from scenes import write_words

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


def asked_tone(file: Path) -> str:
    """The tone that a sample was asked for, which sample.py wrote into it; of a real image that of its name."""
    info = Image.open(file).info
    if "number" not in info:
        return tone_of(file.name)
    tones = [tone.strip() for tone in str(info["condition of tone"]).split(",")]
    return tones[int(info["number"]) % len(tones)]


def score(folder: Path) -> None:
    """Print, for each tone that was asked for, what the skin in the images has."""
    found: dict[str, Counter[str]] = {}
    for file in sorted(folder.glob("*.png")):
        image = np.asarray(Image.open(file).convert("RGB"))
        found.setdefault(asked_tone(file), Counter())[seen_tone(image)] += 1
    for tone in (each for each in (*SKIN, "several") if each in found):
        counts = found[tone]
        right, total = counts[tone], sum(counts.values())
        others = ", ".join(f"{other} {count}" for other, count in counts.most_common() if other != tone)
        print(f"{tone:12} {right:4} of {total:4} ({100 * right / total:5.1f} %); {others}")
    right, total = (
        sum(each) for each in zip(*((found[tone][tone], found[tone].total()) for tone in found), strict=True)
    )
    print(f"{'all':12} {right:4} of {total:4} ({100 * right / total:5.1f} %)")


def words(folder: Path, out: Path) -> None:
    """Write the embeddings of all words of the captions."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    write_words((json.loads(line)["text"] for line in lines), out)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["score", folder]:
            score(Path(folder))
        case ["words", folder, out]:
            words(Path(folder), Path(out))
        case [source, out]:
            write(Path(source), Path(out))
        case _:
            sys.exit("usage: python benchmarks/emoji_conditions.py SOURCE OUT | words FOLDER OUT | score SAMPLES")
