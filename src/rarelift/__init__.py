"""rarelift lifts rare text semantics in MM-DiTs at inference time.

Importing this module does no work; torch and diffusers are imported by the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attach import Handle as Handle
    from .attach import apply as apply
    from .attach import inspect as inspect
    from .attach import remove as remove
    from .settings import Spread as Spread

__version__ = "0.1.0"
__all__ = ["Handle", "Spread", "__version__", "apply", "inspect", "remove"]

_HOMES = {"Handle": "attach", "apply": "attach", "inspect": "attach", "remove": "attach", "Spread": "settings"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rarelift' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
