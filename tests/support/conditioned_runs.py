"""A training of a denoiser of pixels with conditions of every kind, in miniature."""

import json
from pathlib import Path

from PIL import Image

from tests.support.scripts import Stage
from tests.support.word_vectors import word_vectors

CONFIG = """
data:
  kind: folder
  path: {data}
  size: 8
  conditions:
    label: {{kind: class}}
    tone: {{kind: class}}
    angle: {{kind: number, period: 360}}
    text: {{kind: text, encoder: {words}, length: 4, layers: 1, channels: 8}}
denoiser:
  network: {{kind: unet, widths: [4, 8], blocks: 1, attention: [1], head_channels: 4}}
optim: {{lr: 1e-2, warmup: 0}}
run: {{steps: 2, batch_size: 4, checkpoint_every: 1, sample_every: 100, snapshots: 0}}
"""


def conditioned_stage(folder: Path) -> Stage:
    """Twelve images with classes, tones, angles and captions in a folder, and the training on them."""
    (folder / "data").mkdir()
    lines = []
    for number in range(12):
        kind, color = ("cat", "dog")[number % 2], ("red", "blue")[number % 3 == 0]
        Image.new("RGB", (8, 8), (20 * number, 80, 0)).save(folder / "data" / f"{number}.png")
        row = {"file_name": f"{number}.png", "label": kind, "tone": ("dark", "light")[number // 6]}
        lines.append(json.dumps({**row, "angle": 30 * number, "text": f"a {color} {kind}"}))
    (folder / "data" / "metadata.jsonl").write_text("\n".join(lines))
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(data=folder / "data", words=word_vectors(folder / "words")))
    return Stage("train_diffusion", (file,))
