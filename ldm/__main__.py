"""`python -m ldm VERB ...` is `ldm VERB ...`, for launchers such as torchrun."""

from ldm.cli.main import entry

if __name__ == "__main__":
    entry()
