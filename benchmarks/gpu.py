"""Benchmark on a GPU: training and sampling beside diffusers' loops, precisions, exactness. Under nine minutes.

    python benchmarks/gpu.py runs/gpu                       on a machine with a GPU
    python benchmarks/gpu.py runs/gpu --only peak steps     some of the parts
    python benchmarks/gpu.py runs/gpu --smoke               tiny, and on a CPU too: shows that the script runs

Parts: `peak` measures what the chip reaches (matrix products, copies); `steps` times a step of stage two at 10 M and 74
M parameters and of stage one, each beside the same network in the loop of diffusers' examples, as shipped and tuned by
us (fused AdamW, averages by foreach, nothing read back, bf16 autocast, TF32); `cached` compares a step on cached
latents with one that encodes its images; `sampling` times 50 Euler steps and decoding beside LDMPipeline's loop with
the same network. Times are medians over rounds, one loop at a time. `precisions` trains both stages of the
digits in every precision, with and without a graph, and compares what came out; `exact` trains the same twice.
Everything is written to OUT/gpu.json, and printed as tables.
"""

import argparse
import hashlib
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldm.autoencoder.model import Autoencoder, create_trainable
from ldm.autoencoder.objective import ReconstructionObjective
from ldm.batch import Condition, ConditionSchema, ImageBatch, LatentBatch
from ldm.config import reader
from ldm.config.yaml_file import read_yaml
from ldm.diffusion.config import DenoiserConfig, SamplingConfig, UNetConfig
from ldm.diffusion.model import DiffusionModelConfig, create_denoiser
from ldm.diffusion.objective import DenoisingObjective
from ldm.pipeline import LatentDiffusion
from ldm.randomness import seed_weights
from ldm.script_configs import TrainDiffusionConfig, TrainVAEConfig
from ldm.training.config import RunConfig
from ldm.training.graph import GraphedStep
from ldm.training.kernels import training_kernels
from ldm.training.run import Run
from ldm.training.step import TrainingStep

# isort: off
from runs import ROOT, print_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Action = Callable[[], object]
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """A stage-two training: its network, latents and batch."""

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    latent: tuple[int, int, int]
    batch: int
    steps: int = 20  # in a round


@dataclass(frozen=True)
class Effort:
    """How long the script measures."""

    rounds: int
    steps: int  # in a round
    sizes: dict[str, Size]
    sampling_steps: int
    side: int  # of the images of stage one
    training_steps: int


SIZES = {
    "10 M, 16 x 16, batch 64": Size((96, 192), 2, (1,), (4, 16, 16), 64),
    "74 M, 32 x 32, batch 256": Size((160, 320, 480), 2, (1, 2), (4, 32, 32), 256, steps=4),
}
FULL = Effort(rounds=5, steps=20, sizes=SIZES, sampling_steps=50, side=64, training_steps=300)
SMOKE = Effort(
    rounds=1, steps=1, sizes={"tiny": Size((8, 16), 1, (1,), (4, 8, 8), 4)}, sampling_steps=2, side=16, training_steps=2
)


# Timing


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def milliseconds(actions: dict[str, Action], effort: Effort) -> dict[str, float]:
    """Of one call of each; the median over rounds in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        for _ in range(3):
            action()
    wait()
    for _ in range(effort.rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            for _ in range(effort.steps):
                action()
            wait()
            times[name].append((time.perf_counter() - began) / effort.steps * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


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


def peak(effort: Effort) -> Rows:
    """Matrix products and copies, as fast as this chip makes them."""
    side = 8192 if DEVICE == "cuda" else 256
    rows: Rows = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
        took = milliseconds({name: lambda a=a, b=b: a @ b}, effort)[name]
        rows[f"{name} matrix product"] = {"TFLOP/s": 2 * side**3 / took / 1e9}
    source = torch.randn(side * side, device=DEVICE)
    target = torch.empty_like(source)
    took = milliseconds({"copy": lambda: target.copy_(source)}, effort)["copy"]
    rows["copy"] = {"TB/s": 2 * source.nbytes / took / 1e9}
    return rows


# Training steps


class Loop:
    """The training loop of diffusers' examples: as it comes, or tuned."""

    def __init__(self, model: nn.Module, *, tuned: bool):
        self.model, self.tuned = model, tuned
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True if tuned else None)
        self.schedule = get_scheduler("cosine", self.optimizer, num_warmup_steps=500, num_training_steps=100_000)
        self.ema = EMAModel(parameters, use_ema_warmup=True, foreach=tuned)
        self.parameters = parameters

    def autocast(self) -> Any:
        return torch.autocast(DEVICE, torch.bfloat16)

    def update(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True if self.tuned else None)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters)
        if not self.tuned:
            loss.detach().item()


def diffusion_model(size: Size) -> DiffusionModelConfig:
    network = UNetConfig(widths=size.widths, blocks=size.blocks, attention=size.attention)
    return DiffusionModelConfig(size.latent, ConditionSchema(), DenoiserConfig(network=network), SamplingConfig())


def latent_batch(size: Size) -> LatentBatch:
    latents = torch.randn(size.batch, *size.latent, device=DEVICE)
    sigma = torch.rand(size.batch, device=DEVICE) + 0.1
    return LatentBatch(latents, torch.randn_like(latents), sigma, Condition({}))


def created_run(config: TrainDiffusionConfig | TrainVAEConfig) -> Run:
    """A run that writes nothing; Accelerate allows one precision in a process, unless it is told to forget it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Run(config, Path(tempfile.mkdtemp()), dry=True)


def ours(run: Run, batch: object, body: Callable[[TrainingStep], None]) -> Action:
    """A step of the run, as a training script's loop makes it."""
    learn = body if run.run_config.graph == "off" else GraphedStep(body, run.trained.phase, run.device)

    def action() -> None:
        run.begin_step(0)
        learn(run.step(0, 0, batch))
        run.metrics.rows.clear()
        run.metrics.names.clear()

    return action


def our_denoising_step(size: Size, batch: LatentBatch, **run_settings: Any) -> Action:
    """The body of train_diffusion.py's loop."""
    run = created_run(TrainDiffusionConfig(run=RunConfig(batch_size=size.batch, **run_settings)))
    seed_weights(0)
    denoiser = create_denoiser(diffusion_model(size))
    objective = run.prepare(DenoisingObjective(denoiser), trains=denoiser)
    run.resume("")

    def body(step: TrainingStep) -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        step.log(losses.terms)

    return ours(run, batch, body)


def their_denoising_step(size: Size, batch: LatentBatch, *, tuned: bool) -> Action:
    """The same network and loss in diffusers' loop."""
    seed_weights(0)
    denoiser = create_denoiser(diffusion_model(size)).to(DEVICE)
    objective = DenoisingObjective(denoiser)
    loop = Loop(denoiser, tuned=tuned)

    def action() -> None:
        noise = torch.randn_like(batch.latents)
        with loop.autocast():
            losses = objective(batch._replace(noise=noise))
        loop.update(losses.total)

    return action


BF16_WEIGHTS = {"precision": "bf16-weights"}
EAGER: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "bf16 weights": BF16_WEIGHTS,
}
GRAPHED = {f"{name}, graph": {**run, "graph": "on"} for name, run in EAGER.items()}
OURS = EAGER | (GRAPHED if DEVICE == "cuda" else {})


def stage_two_steps(effort: Effort) -> Rows:
    """A step of each loop and precision; model FLOPs as counted by torch, forward and backward."""
    rows: Rows = {}
    for name, size in effort.sizes.items():
        batch = latent_batch(size)
        makers: dict[str, Callable[[], Action]] = {
            f"ours, {mode}": partial(our_denoising_step, size, batch, **run) for mode, run in OURS.items()
        }
        makers["diffusers' loop"] = partial(their_denoising_step, size, batch, tuned=False)
        makers["diffusers' loop, tuned"] = partial(their_denoising_step, size, batch, tuned=True)
        with FlopCounterMode(display=False) as counter:
            makers["ours, fp32"]()()
        flops = counter.get_total_flops()
        for row, make in makers.items():
            found = measured(row, make, replace(effort, steps=min(effort.steps, size.steps)))
            rows[f"{name}: {row}"] = {**found, "TFLOP/s": flops / found["ms"] / 1e9}
    return rows


def measured(row: str, make: Callable[[], Action], effort: Effort) -> dict[str, Any]:
    """The milliseconds of a step, its kernels and its memory, said at once. One loop at a time: graphs keep memory."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    action = make()
    with training_kernels(RunConfig(), torch.device(DEVICE)):
        found: dict[str, Any] = {"ms": milliseconds({"": action}, effort)[""], "kernels": kernels(action)}
    found["GiB"] = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else None
    print(f"{row}: {found['ms']:.2f} ms", flush=True)
    return found


def autoencoder_config(file: str, **run_settings: Any) -> TrainVAEConfig:
    config: TrainVAEConfig = reader.from_dict(TrainVAEConfig, read_yaml(ROOT / "configs" / "vae" / file))
    return replace(config, run=replace(config.run, **run_settings))


def stage_one_steps(effort: Effort) -> Rows:
    """A step of configs/vae/folder.yaml and kl-f4.yaml: ours, and the network in diffusers' loop."""
    rows: Rows = {}
    for file in ("folder.yaml", "kl-f4.yaml"):
        config = autoencoder_config(file)
        size = config.run.batch_size
        images = torch.rand(size, 3, effort.side, effort.side, device=DEVICE) * 2 - 1
        makers: dict[str, Callable[[], Action]] = {
            f"ours, {mode}": partial(our_autoencoder_step, file, images, **run) for mode, run in OURS.items()
        }
        for loop, tuned in (("diffusers' loop", False), ("diffusers' loop, tuned", True)):
            makers[loop] = partial(their_autoencoder_step, config, images, tuned=tuned)
        rows |= {f"{file}, batch {size}: {row}": measured(row, make, effort) for row, make in makers.items()}
    return rows


def our_autoencoder(config: TrainVAEConfig, side: int) -> Autoencoder:
    seed_weights(0)
    return create_trainable(config.autoencoder, image=(3, side, side))


def our_autoencoder_step(file: str, images: Tensor, **run_settings: Any) -> Action:
    """The body of train_vae.py's loop."""
    config = autoencoder_config(file, **run_settings)
    run = created_run(config)
    autoencoder = our_autoencoder(config, images.shape[-1])
    reconstruction = ReconstructionObjective(autoencoder, config.objective, steps=config.run.steps)
    objective = run.prepare(reconstruction, trains=autoencoder, schedule=reconstruction.schedule)
    run.resume("")
    batch = ImageBatch(images, torch.zeros(len(images), dtype=torch.int64, device=DEVICE))

    def body(step: TrainingStep) -> None:
        losses = objective(step.batch, step)
        step.update(losses.total)
        step.log(losses.terms)

    return ours(run, batch, body)


def their_autoencoder_step(config: TrainVAEConfig, images: Tensor, *, tuned: bool) -> Action:
    model = our_autoencoder(config, images.shape[-1]).to(DEVICE)
    loop = Loop(model, tuned=tuned)

    def action() -> None:
        with loop.autocast():
            posterior = model.encode(images)
            reconstruction = model.decode(posterior.sample())
        loss = F.l1_loss(reconstruction.float(), images) + 1e-6 * posterior.kl().mean() / images[0].numel()
        loop.update(loss)

    return action


def steps(effort: Effort) -> Rows:
    return stage_two_steps(effort) | stage_one_steps(effort)


# Sampling


def sampling(effort: Effort) -> Rows:
    """50 Euler steps and decoding beside diffusers' LDMPipeline loop on the same network and autoencoder."""
    from diffusers import DDIMScheduler

    size = next(iter(effort.sizes.values()))
    config = autoencoder_config("kl-f4.yaml")
    autoencoder = our_autoencoder(config, 4 * size.latent[1])
    model = LatentDiffusion(autoencoder, create_denoiser(diffusion_model(size)), diffusion_model(size)).to(DEVICE)
    network, scheduler = model.denoiser.network, DDIMScheduler()
    vector, tokens = model.denoiser.embedding(None, torch.ones(1, device=DEVICE))  # none: it is unconditional

    @torch.no_grad()
    def theirs(num: int) -> Tensor:
        latents = torch.randn(num, *size.latent, device=DEVICE) * scheduler.init_noise_sigma
        scheduler.set_timesteps(effort.sampling_steps)
        for step in scheduler.timesteps:
            scaled = scheduler.scale_model_input(latents, step)
            output = network(scaled, step.to(DEVICE).float().expand(num), vector, tokens)
            latents = scheduler.step(output, step, latents).prev_sample
        images: Tensor = model.autoencoder.decode(latents)
        return (images / 2 + 0.5).clamp(0, 1).cpu()

    rows: Rows = {}
    for num in (1, 64):
        actions: dict[str, Action] = {
            "ours": lambda num=num: model.sample(num, steps=effort.sampling_steps, sampler="euler", seed=0),
            "LDMPipeline's loop": lambda num=num: theirs(num),
        }
        brief = replace(effort, steps=1)
        for row, took in milliseconds(actions, brief).items():
            rows[f"batch {num}: {row}"] = {"ms": took, "images/s": num / took * 1e3}
    return rows


def cached(effort: Effort) -> Rows:
    """A step on cached latents, and one that encodes its images first."""
    size = next(iter(effort.sizes.values()))
    autoencoder = our_autoencoder(autoencoder_config("kl-f4.yaml"), 4 * size.latent[1]).to(DEVICE)
    images = torch.rand(size.batch, 3, 4 * size.latent[1], 4 * size.latent[2], device=DEVICE) * 2 - 1
    step = our_denoising_step(size, latent_batch(size), precision="bf16")

    @torch.no_grad()
    def encode() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            autoencoder.encode(images).sample()

    actions: dict[str, Action] = {"cached latents": step, "encoding at every step": lambda: (encode(), step())}
    return {name: {"ms": took} for name, took in milliseconds(actions, effort).items()}


# Whole trainings


def trained(out: Path, effort: Effort, *settings: str) -> tuple[dict[str, Any], str]:
    """Both stages of the digits; held-out PSNR, held-out loss, images per second, and a hash of both weights."""
    flags = f"--run.steps {effort.training_steps} {' '.join(settings)}"
    stages = {
        "vae": f"train_vae.py configs/vae/mnist5k.yaml --out {out}/vae {flags}",
        "diffusion": f"train_diffusion.py configs/diffusion/mnist5k.yaml --autoencoder {out}/vae --out {out}/diffusion"
        f" {flags}",
    }
    row: dict[str, Any] = {}
    digest = hashlib.sha256()
    for stage, command in stages.items():
        subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, check=True, capture_output=True)
        lines = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        row[f"{stage}, images/s"] = statistics.median(rates)
        report = json.loads((out / stage / "report.json").read_text())
        row |= {name: report[name] for name in ("held_out_psnr_of_sample", "held_out_loss") if name in report}
        for file in sorted((out / stage / ("vae" if stage == "vae" else "unet")).glob("*.safetensors")):
            digest.update(file.read_bytes())
    return row, digest.hexdigest()


def precisions(effort: Effort) -> Rows:
    """What both stages reach in every precision, with and without a graph."""
    with tempfile.TemporaryDirectory() as folder:
        modes = {name: [f"--run.{key} {value}" for key, value in run.items()] for name, run in OURS.items()}
        with ThreadPoolExecutor(len(modes)) as pool:  # beside one another: images/s are lower than alone
            found = pool.map(
                lambda item: trained(Path(folder) / str(item[0]), effort, *item[1]), enumerate(modes.values())
            )
            return dict(zip(modes, (row for row, _ in found), strict=True))


def exact(effort: Effort) -> Rows:
    """Whether the same command gives the same weights again, and a graph the same as none."""
    kinds = {
        "twice, deterministic": ["--run.deterministic true"],
        "graph": ["--run.deterministic true", "--run.graph on"] if DEVICE == "cuda" else ["--run.deterministic true"],
        "as it comes": [],
    }
    rows: Rows = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(4) as pool:
        runs = [(name, number) for name in kinds for number in range(2)]
        found = pool.map(
            lambda run: trained(
                Path(folder) / f"{run[0]}{run[1]}".replace(" ", "-").replace(",", ""), effort, *kinds[run[0]]
            )[1],
            runs,
        )
        digests = dict(zip(runs, found, strict=True))
    for name in kinds:
        rows[name] = {
            "same again": float(digests[name, 0] == digests[name, 1]),
            "same as deterministic": float(digests[name, 0] == digests["twice, deterministic", 0]),
        }
    return rows


PARTS: dict[str, Callable[[Effort], Rows]] = {
    "peak": peak,
    "steps": steps,
    "cached": cached,
    "sampling": sampling,
    "precisions": precisions,
    "exact": exact,
}


def show(rows: Rows) -> None:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [
        [name, *("" if row.get(column) is None else f"{row[column]:,.4g}" for column in columns)]
        for name, row in rows.items()
    ]
    print_table(["", *columns], cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if DEVICE == "cpu" and not options.smoke:
        raise SystemExit("there is no GPU here: --smoke shows on a CPU that this script runs")
    options.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}
    for part in options.only:
        began = time.monotonic()
        print(f"\n{part}, {name}, torch {torch.__version__}\n", flush=True)
        found[part] = PARTS[part](SMOKE if options.smoke else FULL)
        show(found[part])
        print(f"({time.monotonic() - began:.0f} s)", flush=True)
        (options.out / "gpu.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
