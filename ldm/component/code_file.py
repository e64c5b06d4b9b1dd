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


def own_code(place: str, purpose: str, parts: Mapping[str, str], *, plain: str = "") -> CodeFile:
    """The file that defines a class of ours and all that it needs, called by its purpose and by what is in it.

    `place` is that of the class, `package.module:name`: it is read and not imported. diffusers copies the code of every
    model into one folder, and imports it there under the name of the file: files that differ need names that differ.
    `parts` names the tables of swappable parts of which it needs one entry. `plain` is a function in the file that is
    to work where diffusers is not installed.
    """
    if __name__.startswith("ldm."):
        from ldm.component.standalone import standalone

        text = f"{MARK} {standalone(place, tuple(parts.items()), plain)}"
        return CodeFile(f"{purpose}_{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)
    text = Path(__file__).read_text(encoding="utf-8")
    return CodeFile(f"{purpose}_{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)
