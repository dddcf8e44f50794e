"""The files of the repository that commands need: the sources of the images, and the examples.

A checkout has them in its folders. A wheel has copies, in the folder `_sources` of the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nanoagent.model.errors import ConfigError

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_CHECKOUT: Final = _PACKAGE.parents[1]
_IN_WHEEL: Final = _PACKAGE / "_sources"


def folder(name: str) -> Path:
    """Return the path of a folder or file of the repository.

    Args:
        name: Its path in the repository, such as `examples`.

    Raises:
        ConfigError: The installation has no such file.
    """
    for root in (_CHECKOUT, _IN_WHEEL):
        # Any folder above the package may have a folder of the same name.
        if (root / "docker" / "supervisor").is_dir() and (root / name).exists():
            return root / name
    raise ConfigError([f"{name}: is missing in this installation; install the package again"])
