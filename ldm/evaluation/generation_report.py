"""The report on generated images: its protocol, and the table that a person reads."""

import hashlib
import platform
from typing import Any

from ldm.component.versions import versions_of
from ldm.evaluation.classifier import protocol_entry
from ldm.evaluation.fidelity import COVERAGE_NEIGHBORS, MANIFOLD_NEIGHBORS
from ldm.evaluation.formatting import format_metric
from ldm.evaluation.generation import RealImages
from ldm.evaluation.image_sets import ImageSet, SamplingSettings
from ldm.evaluation.memorization import memorization_table
from ldm.evaluation.metrics import KID_SUBSET, KID_SUBSETS
from ldm.evaluation.report import PACKAGES
from ldm.evaluation.sample_conditions import conditions_note
from ldm.nn.pretrained_weights import sha256_of
from ldm.pipeline import LatentDiffusion

COLUMNS = ("frechet", "kernel", "precision", "recall", "density", "coverage")
ROWS = {
    "samples": "samples",
    "samples_as_many_as_held_out": "  the first of them",
    "held_out": "held-out images",
    "training": "training images",
    "reconstructions": "held-out, through the autoencoder",
    "gaussian": "samples of the latents' Gaussian",
}
CLASSIFICATION = {
    "read_as_class": "samples read as their class",
    "held_out_read_as_class": "  held-out images",
    "reconstructions_read_as_class": "  held-out, through the autoencoder",
    "classification_accuracy_score": "classifier trained on samples only, on held-out images",
    "as_many_training_images": "  on as many training images",
    "largest_class": "  share of the largest class",
}
OF_CONDITION = {"held_out_read_as_theirs": "  held-out images", "largest": "  share of the largest class"}


def header(
    real: RealImages, num: int, model: LatentDiffusion | None, settings: SamplingSettings | None, source: str
) -> dict[str, Any]:
    """The protocol, and what is measured beside what, ready for JSON; known before any sample is drawn.

    `source` is what draws or holds the samples, `settings` how they are drawn.
    """
    return {
        "samples": {"source": source, "count": num, **model_entry(model)},
        "protocol": protocol(real, num, model, settings),
        "data": real.data.training.dataset.fingerprint,
        "versions": {"python": platform.python_version(), **versions_of(PACKAGES)},
    }


def report(header: dict[str, Any], samples: ImageSet, metrics: dict[str, Any]) -> dict[str, Any]:
    """The header with the metrics, and a hash of the samples that they are of."""
    return {**header, "samples": {**header["samples"], "sha256": digest(samples)}, "metrics": metrics}


def digest(images: ImageSet) -> str:
    """SHA-256 of the SHA-256 of the images' bytes."""
    each = (hashlib.sha256(pixels.numpy().tobytes()).digest() for pixels in images.pixels)
    return hashlib.sha256(b"".join(each)).hexdigest()


def model_entry(model: LatentDiffusion | None) -> dict[str, Any]:
    """What identifies the model that drew the samples; nothing if none did."""
    if model is None:
        return {}
    return {
        "denoiser": sha256_of(model.denoiser.state_dict()),
        "autoencoder": sha256_of(model.autoencoder.state_dict()),
        "parameters": sum(parameter.numel() for parameter in model.denoiser.parameters()),
        "latent": list(model.config.latent_shape),
    }


def protocol(
    real: RealImages, num: int, model: LatentDiffusion | None, settings: SamplingSettings | None
) -> dict[str, Any]:
    """All that the metrics depend on."""
    scaled = "scaled, bicubic and antialiased, to just cover the size; " if resized(real) else ""
    held_out = "every second training image, as none is held out" if real.data.are_halves else "held out"
    return {
        "image": list(real.training.pixels.shape[1:]),
        "views": f"{scaled}cropped in the center; samples that were read from files too",
        "rounding": "all images to 8 bits, before every metric",
        "training_images": len(real.training),
        "held_out_images": len(real.held_out),
        "held_out": held_out,
        "sampling": settings and settings.entry(),
        "labels": None if model is None or settings is None else conditions_note(model, real.data),
        **features_entry(real, num),
        "classifier": protocol_entry(real.classifiers[0], real.task, len(real.training)) if real.classifiers else None,
        **readers_entry(real),
        "gaussian": gaussian_entry(real),
    }


def readers_entry(real: RealImages) -> dict[str, Any]:
    """The classifiers that read other conditions than the classes of the data; nothing where there are none."""
    if not real.readers:
        return {}
    found = {name: protocol_entry(reader, task, len(real.training)) for name, (task, reader) in real.readers.items()}
    return {"classifiers_of_conditions": found}


def resized(real: RealImages) -> bool:
    """Whether images are scaled to their size, and not only cropped."""
    return real.data.training.dataset.config.resize


def features_entry(real: RealImages, num: int) -> dict[str, Any]:
    """The features, and what is made of them."""
    assert real.training.features is not None
    dimensions, official = real.training.features.shape[1], real.extractor.frechet_name == "rfid"
    subsets = KID_SUBSETS if max(len(real.training), num) > KID_SUBSET else 1
    return {
        "features": {
            "frechet": "fid" if official else real.extractor.frechet_name,
            "kernel": "kid" if official else real.extractor.kernel_name,
            "dimensions": dimensions,
            "weights": real.extractor.reference,
            "fewer_images_than_dimensions": min(num, len(real.held_out)) <= dimensions,
        },
        "frechet": "between Gaussians fitted to the features; the fewer images, the larger",
        "kernel": f"squared MMD, unbiased, kernel (x y / dimensions + 1)^3; sets of more than {KID_SUBSET} images by"
        f" the mean over {subsets} subsets of torch-fidelity",
        "precision, recall": f"balls to the {MANIFOLD_NEIGHBORS} nearest neighbors (Kynkäänniemi et al. 2019)",
        "density, coverage": f"balls to the {COVERAGE_NEIGHBORS} nearest neighbors (Naeem et al. 2020)",
    }


def gaussian_entry(real: RealImages) -> dict[str, Any] | None:
    """The Gaussian of the latents; None where there is none."""
    if real.gaussian is None:
        return None
    mirrored = ", with mirror images" if real.task.flip else ""
    return {
        "fitted_to": f"the latents of {len(real.training)} training images{mirrored}",
        "components": len(real.gaussian.eigenvalues),
        "eigenvalues": "cross-validated, images of one group together",
    }


def generation_table(result: dict[str, Any]) -> str:
    """The report as a person reads it."""
    metrics, found = result["metrics"], result["protocol"]
    features = found["features"]
    name = features["frechet"].removeprefix("frechet_")
    lines = [samples_line(result), f"features  {features['dimensions']} of {name}"]
    titles = ["FID" if features["frechet"] == "fid" else "Fréchet", "KID" if features["kernel"] == "kid" else "kernel"]
    for side, of in (("against_training", "training_images"), ("against_held_out", "held_out_images")):
        count = found[of]
        heading = f"against {count} {of.replace('_', ' ').replace('held out', 'held-out')}"
        lines += ["", comparison_table(heading, metrics[side], titles)]
    if features["fewer_images_than_dimensions"]:
        lines.append(
            f"The Fréchet distances are too large: there are no more images than the {features['dimensions']} features."
        )
    if "classification" in metrics:
        rows = [
            (title, metrics["classification"][name])
            for name, title in CLASSIFICATION.items()
            if name in metrics["classification"]
        ]
        width = max(len(title) for title, _ in rows)
        lines += ["", *(f"{title:{width}}  {format_metric(100 * value, ' %')}" for title, value in rows)]
    for name, read in metrics.get("conditions", {}).items():
        shown = {"read_as_asked": f"samples read as their {name}", **OF_CONDITION}
        width = max(map(len, shown.values()))
        lines += ["", *(f"{title:{width}}  {format_metric(100 * read[key], ' %')}" for key, title in shown.items())]
    if "denoising" in metrics:
        lines += ["", denoising_table(metrics["denoising"])]
    if "memorization" in result:
        lines += ["", memorization_table(result["memorization"])]
    return "\n".join(lines)


def samples_line(result: dict[str, Any]) -> str:
    """How many samples there are, of what, and how they were drawn."""
    samples, found = result["samples"], result["protocol"]
    image = " x ".join(map(str, found["image"]))
    drawn = found["sampling"] or {}
    how = "".join(f", {name} {value}" for name, value in drawn.items())
    return f"samples   {samples['count']} of {samples['source']}, each {image}{how}"


def comparison_table(heading: str, sets: dict[str, dict[str, float]], titles: list[str]) -> str:
    """The metrics of features, a line for each set."""
    names = {name: title for name, title in ROWS.items() if name in sets}
    width = max(len(heading), *(len(title) for title in names.values()))
    columns = ["images", *titles, "precision", "recall", "density", "coverage"]
    lines = [f"{heading:{width}}" + "".join(f"{title:>11}" for title in columns)]
    for name, title in names.items():
        values = [format_metric(sets[name][column]) for column in ("images", *COLUMNS)]
        lines.append(f"{title:{width}}" + "".join(f"{value:>11}" for value in values))
    return "\n".join(lines)


def denoising_table(losses: dict[str, Any]) -> str:
    """The losses by noise level, a line for each denoiser."""
    titles = {
        "sigma": "held-out denoising loss at σ",
        "loss": "  of the model",
        "gaussian": "  of the Gaussian",
        "fraction": "  model / Gaussian",
    }
    return "\n".join(
        f"{title:28}" + "".join(f"{format_metric(value, spec='.3g'):>9}" for value in losses[name])
        for name, title in titles.items()
        if name in losses
    )
