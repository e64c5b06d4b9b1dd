"""Scripts that run in forked children of the test process, and what they leave behind."""

import contextlib
import importlib
import io
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldm.component.code_file import own_code
from ldm.terminal import exit_code_of

ROOT = Path(__file__).parent.parent.parent
HEAVY = (
    *("accelerate", "lpips", "matplotlib.backends.backend_agg", "matplotlib.figure"),
    *("ldm.export.finalize", "ldm.export.warm_start", "ldm.latents", "ldm.pipeline", "ldm.training.dry_run"),
    *("ldm.autoencoder.objective", "ldm.data.summary", "ldm.diffusion.objective", "ldm.evaluation.panels"),
)
EXPORTED = {  # the code of miniature runs
    "pipeline": ("ldm.export.pipeline.latent_diffusion_pipeline:LatentDiffusionPipeline", {}),
    "denoiser": (
        "ldm.export.pipeline.denoiser_model:DenoiserModel",
        {"DENOISER_NETWORKS": "unet", "SAMPLERS": "heun"},
    ),
}


@dataclass(frozen=True)
class Outcome:
    """How a script ended."""

    code: int
    out: str
    err: str


def forked(action: Callable[[], int]) -> tuple[int, Callable[[], Outcome]]:
    """Start `action` in a forked child; returns its process id and a function that waits for it."""
    ends = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for (read, write), stream in zip(ends, (1, 2), strict=True):
            os.close(read)
            os.dup2(write, stream)
        sys.stdout, sys.stderr = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True), os.fdopen(2, "w", 1)
        code = 70
        try:
            code = action()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    for _, write in ends:
        os.close(write)

    def wait() -> Outcome:
        texts = ["", ""]

        def drain(place: int) -> None:
            with os.fdopen(ends[place][0], errors="replace") as pipe:
                texts[place] = pipe.read()

        threads = [threading.Thread(target=drain, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        _, status = os.waitpid(child, 0)
        for thread in threads:
            thread.join()
        return Outcome(os.waitstatus_to_exitcode(status), *texts)

    return child, wait


def script(name: str, *arguments: object) -> Callable[[], int]:
    """`python NAME.py ARGUMENTS` as a function for `forked`, with all that it needs imported here, once."""
    for heavy in HEAVY:
        importlib.import_module(heavy)
    for purpose, (place, parts) in EXPORTED.items():  # kept: every run that is exported would write it out again
        own_code(place, purpose, parts)
    module = importlib.import_module(name)

    def action() -> int:
        sys.argv = [f"{name}.py", *map(str, arguments)]
        return exit_code_of(module.main, sys.argv[1:])

    return action


def ran(name: str, *arguments: object) -> Outcome:
    """`python NAME.py ARGUMENTS`, to its end."""
    return forked(script(name, *arguments))[1]()


def metrics(run: Path) -> list[dict[str, float]]:
    """The log of a run without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_gb")} for line in lines]


def weights(run: Path) -> dict[str, bytes]:
    """Every safetensors file of the newest checkpoint and of the exports, byte for byte."""
    newest = sorted((run / "checkpoints").glob("step-????????"))[-1]
    files = [*newest.glob("*.safetensors"), *run.glob("vae/*.safetensors"), *run.glob("unet/*.safetensors")]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def together(actions: list[Callable[[], int]]) -> list[Outcome]:
    """The actions as the ranks of one gloo process group on this machine, each in its own forked child."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def as_rank(rank: int, action: Callable[[], int]) -> Callable[[], int]:
        def ranked() -> int:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(actions))}
            os.environ |= {"LOCAL_WORLD_SIZE": str(len(actions)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            return action()

        return ranked

    waits = [forked(as_rank(rank, action))[1] for rank, action in enumerate(actions)]
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda wait=wait: outcomes.append(wait())) for wait in waits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    return outcomes


@dataclass(frozen=True)
class Stage:
    """One of the two stages in miniature: its script and its arguments without --out."""

    name: str
    arguments: tuple[object, ...]

    def run(self, out: Path, *more: object) -> Outcome:
        return ran(self.name, *self.arguments, "--out", out, *more)

    def processes(self, count: int, out: Path, *more: object) -> list[Outcome]:
        return together([script(self.name, *self.arguments, "--out", out, *more)] * count)

    def start(self, out: Path, *more: object) -> tuple[int, Callable[[], Outcome]]:
        return forked(script(self.name, *self.arguments, "--out", out, *more))
