"""An autoencoder that somebody else made, and a run of train_vae.py that starts from it."""

from pathlib import Path

import torch

from tests.support.scripts import Stage


def save_foreign_autoencoder(folder: Path) -> Path:
    """An untrained AutoencoderKL of diffusers in a folder, with scaling factor 0.7 and shift factor 0.2."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=3,
        scaling_factor=0.7,
        shift_factor=0.2,
    ).save_pretrained(folder)
    return folder


def fine_tuning(data: Path, source: Path, folder: Path, *, freeze_encoder: bool) -> Stage:
    """Four steps from the autoencoder in `source`; the config is written into `folder`."""
    (folder / "config.yaml").write_text(f"""
data: {{kind: folder, path: "{data}", size: 16}}
autoencoder:
  network: {{kind: pretrained, path: "{source}"}}
  bottleneck: {{channels: 3}}
  freeze_encoder: {str(freeze_encoder).lower()}
optim: {{lr: 2e-3, warmup: 2}}
run: {{steps: 4, batch_size: 8, log_every: 2, checkpoint_every: 2, precision: fp32}}
""")
    return Stage("train_vae", (folder / "config.yaml",))
