"""Suggestions for an unknown setting: the nearest name, or what diffusers' training scripts call it."""

from difflib import get_close_matches

ELSEWHERE = {  # what diffusers' training scripts and others call it; docs/glossary.md has the whole table
    "train_data_dir": "data.path",
    "dataset_name": "data.path",
    "resolution": "data.size",
    "image_size": "data.size",
    "random_flip": "data.flip",
    "center_crop": "data.crop",
    "output_dir": "out",
    "max_train_steps": "run.steps",
    "train_batch_size": "run.batch_size",
    "batch_size": "run.batch_size",
    "gradient_accumulation_steps": "run.accumulation",
    "learning_rate": "optim.lr",
    "lr": "optim.lr",
    "lr_scheduler": "optim.schedule",
    "lr_warmup_steps": "optim.warmup",
    "mixed_precision": "run.precision",
    "dataloader_num_workers": "run.workers",
    "num_workers": "run.workers",
    "checkpointing_steps": "run.checkpoint_every",
    "report_to": "run.report_to",
    "use_ema": "run.ema",
    "seed": "run.seed",
}


def advice(path: str, names: list[str], dashes: str = "") -> str:
    """The name that was probably meant; failing that, those that are possible in this place."""
    section, _, leaf = path.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    namesakes = [name for name in names if name.rpartition(".")[2] == leaf]
    near = [name for name in (ELSEWHERE.get(path.replace("-", "_")),) if name in names]
    near += [siblings[match] for match in get_close_matches(leaf, siblings, n=1)]
    near += get_close_matches(path, namesakes, n=1, cutoff=0) + get_close_matches(path, names, n=1, cutoff=0.8)
    if near:
        return f"did you mean {dashes}{near[0]}?"
    possible = list(siblings.values()) or [name for name in names if "." not in name]
    return f"possible: {', '.join(dashes + name for name in possible)}"
