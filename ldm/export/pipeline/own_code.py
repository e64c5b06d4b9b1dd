"""The code that a folder brings along, so that diffusers opens it where this package is not installed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = "# Written out from latent-diffusion-trainer"  # how such a file begins


@dataclass(frozen=True)
class CodeFile:
    """A file of Python."""

    module: str  # its name without .py
    text: str

    def write(self, folder: Path) -> None:
        """Put it into a folder, in place of what an earlier version of this package has put there."""
        purpose = self.module.rpartition("_")[0]
        for file in [*folder.glob(f"{purpose}_????????.py"), folder / f"{purpose}.py"]:
            if file.is_file() and file.read_bytes().startswith((MARK.encode(), b"from ldm.")):
                file.unlink()
        (folder / f"{self.module}.py").write_text(self.text, encoding="utf-8")


def own_code(entry: type, purpose: str, parts: Mapping[str, str]) -> CodeFile:
    """The file that defines a class of ours and all that it needs, called by its purpose and by what is in it.

    diffusers copies the code of every model into one folder, and imports it there under the name of the file: files
    that differ need names that differ. `parts` names the tables of swappable parts of which it needs one entry.
    """
    if __name__.startswith("ldm."):
        from ldm.export.pipeline.standalone import standalone

        text = f"{MARK} {standalone(entry, tuple(parts.items()))}"
        return CodeFile(f"{purpose}_{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)
    text = Path(__file__).read_text(encoding="utf-8")
    return CodeFile(f"{purpose}_{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)
