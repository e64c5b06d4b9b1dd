"""Formats metrics and reports for the terminal."""

import math
from typing import Any

from ldm.evaluation.metrics import MS_SSIM_SIDE, SSIM_SIDE

FEATURE_METRICS = {
    "distance": ("perceptual distance", "--lpips vgg"),
    "frechet": ("Frechet distance", "--fid inception"),
    "kernel": ("kernel distance", "--fid inception"),
}
TITLES = {"rfid": "rFID", "kid": "KID"}
LATENT_METRICS = {
    "kl_per_latent_element": "KL per latent element, nats",
    "latent_mean": "latent mean",
    "latent_std": "latent std",
    "latent_spectrum_slope": "spectrum slope",
    "encoder_jacobian": "encoder Jacobian",
}
MAX_SHOWN = 16  # channels, one by one; of more, the smallest and the largest


def format_metric(value: Any, unit: str = "", undefined: str = "not defined", spec: str = ".4g") -> str:
    """A number, or several, to four digits or as `spec` says."""
    if value is None:
        return undefined
    if isinstance(value, list) and len(value) > MAX_SHOWN:
        return f"{format_number(min(value), spec)} to {format_number(max(value), spec)}, in {len(value)} channels"
    return " ".join(format_number(number, spec) for number in (value if isinstance(value, list) else [value])) + unit


def format_number(value: Any, spec: str) -> str:
    """One number; whole numbers as they are."""
    return f"{value:{spec}}" if isinstance(value, float) else str(value)


def report_table(result: dict[str, Any]) -> str:
    """The report as a person reads it."""
    metrics, protocol = result["metrics"], result["protocol"]
    image, latent = (" x ".join(map(str, protocol[name])) for name in ("image", "latent"))
    rows = [("images", f"{result['count']} ({protocol['split']}), each {image}, in latents of {latent}")]
    if result["unreadable"]:
        rows.append(("unreadable", f"{result['unreadable']}, replaced by others"))
    rows.append(("PSNR", format_metric(metrics["psnr"], " dB")))
    if metrics["psnr_of_sample"] is not None:
        rows.append(("  decoded from a sample", format_metric(metrics["psnr_of_sample"], " dB")))
    for title, name in (("global PCA", "pca_psnr"), ("PCA per patch", "patch_pca_psnr")):
        without = (
            "not defined: too few training images" if protocol["baselines"] else "not measured: no training images"
        )
        if name == "patch_pca_psnr" and protocol["latent"][1:] == [1, 1]:
            without = "the same: there is one patch"
        rows.append((f"  PSNR of {title}", format_metric(metrics[name], " dB", without)))
    for title, name, side in (("SSIM", "ssim", SSIM_SIDE), ("MS-SSIM", "ms_ssim", MS_SSIM_SIDE)):
        small = min(protocol["image"][1:]) < side
        undefined = f"not defined: needs sides of at least {side} pixels" if small else "not defined"
        rows.append((title, format_metric(metrics[name], undefined=undefined)))
    for key, (title, advice) in FEATURE_METRICS.items():
        if metric := protocol[key]:
            few = metric.get("fewer_images_than_dimensions")
            note = f" (too large: no more images than the {metric['dimensions']} features)" if few else ""
            rows.append((TITLES.get(metric["name"], metric["name"]), format_metric(metrics[metric["name"]]) + note))
        else:
            rows.append((title, f"not measured: ask with {advice}"))
    rows += probe_rows(metrics, protocol["probe"]) + code_rows(result)
    rows += [(title, format_metric(metrics[name])) for name, title in LATENT_METRICS.items()]
    if metrics["latent_noise"] is not None:
        rows.append(("latent noise", format_metric(metrics["latent_noise"])))
        rows.append(("bits per latent element", format_metric(metrics["bits_per_latent_element"])))
    width = max(len(title) for title, _ in rows)
    return "\n".join(f"{title:{width}}  {text}" for title, text in rows)


def probe_rows(metrics: dict[str, Any], probe: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The accuracies of the probes, each beside that of pixels."""
    if probe is None:
        return [("probe", "not measured: ask with --probe mean, where images have classes")]
    given = f" (of {probe['dimensions']} numbers, {probe['training_images']} training images)"
    rows = []
    for title, name in (("kNN accuracy", "knn_accuracy"), ("linear accuracy", "linear_accuracy")):
        rows += [
            (title, format_metric(metrics[name]) + given),
            ("  of the pixels", format_metric(metrics[f"pixel_{name}"])),
        ]
        given = ""
    return rows


def code_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Explained variance and, of a sparse code, how much of it is used."""
    metrics, rows = result["metrics"], [("explained variance", format_metric(result["metrics"]["explained_variance"]))]
    if result["autoencoder"]["bottleneck"] == "sparse":
        of_all = f" of {math.prod(result['protocol']['latent'])}"
        rows.append(("code elements not 0", format_metric(metrics["code_l0"], of_all)))
        rows.append(("units that are always 0", format_metric(100 * metrics["dead_units"], " %")))
    return rows
