"""The Inception network that FID is defined by (Heusel et al. 2017), with the weights that everybody compares with."""

import hashlib
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.errors import CheckpointError, ConfigError
from ldm.nn.backbone import read_weights
from ldm.shapes import Images, to_uint8

OFFICIAL = "6726825d"  # how the sha256 of the file of weights begins


class Inception(nn.Module):
    """torch-fidelity's port of it, with its own resize to 299 pixels; only if it `is_official` may one speak of FID."""

    def __init__(self, path: Path):
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        read_weights(path)  # torch-fidelity would unpickle anything: what gets past this line is tensors and no more
        try:
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit torch-fidelity's Inception") from error
        self.reference = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self.is_official = self.reference.startswith(OFFICIAL)
        self.eval()

    def pooled(self, images: Images) -> Tensor:
        """2048 features for each RGB image, which is rounded to 8 bits first."""
        return self.network(to_uint8(images))[0]


def open_inception(weights: str = "") -> Inception:
    """The network with the weights in this .pth file, or where torch keeps them; else they are downloaded."""
    if weights:
        return Inception(Path(weights))
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as URL

    path = Path(torch.hub.get_dir(), "checkpoints", URL.rpartition("/")[2])
    if not path.is_file():
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(8)  # torch would wait without end
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with redirect_stdout(sys.stderr):
                torch.hub.download_url_to_file(URL, str(path), hash_prefix=OFFICIAL, progress=False)
        except Exception as error:  # no network, no right to write there, a broken or a wrong file
            reason = " ".join(str(error).split())[:80]
            advice = f"put {path.name} at {path}, or name it with --fid-weights PATH, or choose --fid features"
            raise ConfigError(f"Inception's weights cannot be downloaded ({reason}): {advice}") from error
        finally:
            socket.setdefaulttimeout(before)
    return Inception(path)
