"""The Inception network that FID is defined by (Heusel et al. 2017), with the weights that everybody compares with."""

import hashlib
from pathlib import Path

from torch import Tensor, nn

from ldm.errors import CheckpointError
from ldm.nn.pretrained_weights import in_torch_cache, read_weights
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

    remedy = "name it with --fid-weights PATH, or choose --fid features"
    return Inception(in_torch_cache(URL, OFFICIAL, "Inception", remedy))
