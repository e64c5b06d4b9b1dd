"""Versions of installed packages, this one's included, for files that say what made them."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "latent-diffusion-trainer"
SOURCES = "(sources)"  # of a package that is imported from a folder and was never installed


def version_of(package: str) -> str:
    """The installed version of a distribution; `(sources)` if it is imported without having been installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return SOURCES


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each distribution, as `version_of` has it."""
    return {package: version_of(package) for package in packages}
