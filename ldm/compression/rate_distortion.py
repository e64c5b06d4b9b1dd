"""Rate-distortion curves: what codecs cost and give on the same images, as numbers, a table and a picture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.compression.classical import CLASSICAL_CODECS, ClassicalCodec
from ldm.compression.codec import Codec
from ldm.compression.container import header_size
from ldm.evaluation import metrics
from ldm.evaluation.feature_networks import PerceptualMetric
from ldm.evaluation.formatting import format_metric
from ldm.pictures import import_matplotlib
from ldm.shapes import Images, rounded, to_float, to_uint8

STEPS = (0.03125, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
REFERENCE = "JPEG"


@dataclass(frozen=True)
class RatePoint:
    """A setting of a codec, and means over images: bits per pixel of whole files and without headers, and metrics."""

    setting: float
    bits_per_pixel: float
    payload_bits_per_pixel: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """The points of a codec, from low rates to high ones."""

    name: str
    points: Sequence[RatePoint]

    @property
    def is_lossless(self) -> bool:
        """Whether it gives the images back as they were; PSNR is cut at 100 dB."""
        return min(point.metrics["psnr"] for point in self.points) >= 100

    def bd_rate(self, reference: "Curve", *, payload: bool = False) -> float | None:
        """How much more this codec needs at equal PSNR, as a fraction: -.2 is 20 % less; None without a common range.

        The mean difference of the logarithms of the rates over the PSNR that both reach (Bjøntegaard 2001), here with
        straight lines between the points.
        """
        (mine, my_rates), (others, other_rates) = (each.by_psnr(payload) for each in (self, reference))
        low, high = max(mine[0], others[0]), min(mine[-1], others[-1])
        if high <= low:
            return None
        places = np.linspace(low, high, 513)
        differences = np.interp(places, mine, my_rates) - np.interp(places, others, other_rates)
        return float(np.exp(differences.mean()) - 1)

    def by_psnr(self, payload: bool) -> tuple[np.ndarray, np.ndarray]:
        """PSNR, rising, and the logarithm of the rate; of two points the one that costs more for less is left out."""
        found: list[tuple[float, float]] = []
        for each in sorted(self.points, key=lambda point: point.bits_per_pixel):
            rate = each.payload_bits_per_pixel if payload else each.bits_per_pixel
            if not found or each.metrics["psnr"] > found[-1][0]:
                found.append((each.metrics["psnr"], float(np.log(rate))))
        psnr, rates = np.array(found).T
        return psnr, rates


@dataclass(frozen=True)
class ImageMeter:
    """Images in [-1, 1], and what reconstructions of them are measured by."""

    images: Images
    perceptual: PerceptualMetric | None = None

    def point(self, setting: float, sizes: Sequence[int], headers: int, decoded: Images) -> RatePoint:
        """The point of files of these sizes in bytes, `headers` of them all together no payload."""
        pixels = len(self.images) * self.images.shape[2] * self.images.shape[3]
        total = 8 * sum(sizes)
        return RatePoint(setting, total / pixels, (total - 8 * headers) / pixels, dict(self.measured(decoded)))

    def measured(self, decoded: Images) -> Iterator[tuple[str, float]]:
        """The mean of each metric."""
        smallest = min(self.images.shape[2:])
        yield "psnr", float(metrics.psnr(self.images, decoded).mean())
        if smallest >= metrics.SSIM_SIDE:
            yield "ssim", float(metrics.ssim(self.images, decoded).mean())
        if smallest >= metrics.MS_SSIM_SIDE:
            yield "ms_ssim", float(metrics.ms_ssim(self.images, decoded).mean())
        if self.perceptual is not None:
            measure = self.perceptual.measure
            pairs = zip(self.images.split(16), decoded.split(16), strict=True)
            yield self.perceptual.name, float(torch.cat([measure(*pair) for pair in pairs]).mean())


def curve_of_codec(codec: Codec, meter: ImageMeter, *, name: str, steps: Sequence[float] = STEPS) -> Curve:
    """The curve of a codec of ours, a file for each image, every one of them decoded."""
    points = []
    for step in sorted(steps, reverse=True):
        files = codec.compress(meter.images, step=step)
        decoded = rounded(torch.stack(codec.decompress(files)))
        points.append(meter.point(step, [len(file) for file in files], sum(map(header_size, files)), decoded))
    return Curve(name, points)


def curve_of_classical(name: str, meter: ImageMeter, codec: ClassicalCodec) -> Curve:
    """The curve of a classical codec; its payload is what is neither container nor tables."""
    pixels, channels = [to_uint8(image) for image in meter.images], meter.images.shape[1]
    points = []
    for value in codec.values:
        files = [codec.file(image, value) for image in pixels]
        decoded = torch.stack([to_float(codec.image(file, channels)) for file in files])
        headers = sum(len(file) - codec.payload(file) for file in files)
        points.append(meter.point(value, [len(file) for file in files], headers, decoded))
    return Curve(name, points)


def classical_curves(meter: ImageMeter, tell: Callable[[str], object]) -> list[Curve]:
    """The curves of all classical codecs that this Pillow has; the others are told of."""
    if meter.images.shape[1] not in (1, 3):
        tell(f"the classical codecs take images of 1 or 3 channels, not of {meter.images.shape[1]}: they are left out")
        return []
    for name, codec in CLASSICAL_CODECS.items():
        if not codec.is_there:
            tell(f"{name} is left out: this Pillow was built without it")
    return [curve_of_classical(name, meter, codec) for name, codec in CLASSICAL_CODECS.items() if codec.is_there]


def as_json(curves: Sequence[Curve]) -> dict[str, Any]:
    """All points, and the BD-rates against the reference."""
    reference = next((each for each in curves if each.name == REFERENCE), None)
    rates = {
        each.name: {
            "whole_files": each.bd_rate(reference),
            "payload": each.bd_rate(reference, payload=True),
        }
        for each in curves
        if reference is not None and len(each.points) > 1
    }
    return {
        "curves": {each.name: [asdict(point) for point in each.points] for each in curves},
        f"bd_rate_against_{REFERENCE.lower()}": rates,
    }


def table(curves: Sequence[Curve]) -> str:
    """A line for each point, and one for each BD-rate."""
    columns = list(curves[0].points[0].metrics)
    lines = [f"{'codec':24} {'setting':>8} {'bpp':>8} {'payload':>8} " + " ".join(f"{name:>9}" for name in columns)]
    for curve in curves:
        for point in curve.points:
            shown = " ".join(f"{format_metric(point.metrics[name]):>9}" for name in columns)
            rates = f"{point.bits_per_pixel:8.4f} {point.payload_bits_per_pixel:8.4f}"
            lines.append(f"{curve.name:24} {point.setting:8.4g} {rates} {shown}")
    reference = next((each for each in curves if each.name == REFERENCE), None)
    for curve in curves:
        if reference is None or curve is reference or len(curve.points) < 2:
            continue
        found = [curve.bd_rate(reference, payload=payload) for payload in (False, True)]
        whole, payload_rate = ("no PSNR in common" if each is None else f"{100 * each:+.1f} %" for each in found)
        lines.append(f"BD-rate of {curve.name} against {REFERENCE}: {whole} of whole files, {payload_rate} of payload")
    return "\n".join(lines)


def draw(curves: Sequence[Curve], path: Path, settings: Mapping[str, str] | None = None) -> None:
    """Save the curves: each metric over the bits per pixel of whole files, dashed without headers.

    A codec without loss is a vertical line.
    """
    import_matplotlib()
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(curves[0].points[0].metrics)
    figure = Figure(figsize=(6.4 * len(names), 4.8))
    FigureCanvasAgg(figure)
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), number)
        for place, curve in enumerate(curves):
            values = [point.metrics[name] for point in curve.points]
            whole = [point.bits_per_pixel for point in curve.points]
            payload = [point.payload_bits_per_pixel for point in curve.points]
            color = colormaps["tab20"](place * 2 % 20 + place * 2 // 20 % 2)  # ten strong colors, then ten pale ones
            if curve.is_lossless:
                axes.axvline(whole[0], linestyle=":", color=color, label=curve.name)
                continue
            axes.plot(whole, values, marker=".", color=color, label=curve.name)
            axes.plot(payload, values, linestyle="--", linewidth=0.8, color=color)
        axes.set_xscale("log")
        axes.set_xlabel("bits per pixel, whole files (dashed: without headers)")
        axes.set_ylabel("PSNR, dB" if name == "psnr" else name)
        axes.grid(alpha=0.3, which="both")
        if number == 1:
            axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata=dict(settings or {}))
