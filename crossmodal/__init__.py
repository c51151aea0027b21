"""crossmodal: find the captions of an image and the images of a caption."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": ("crossmodal.model.checkpoints", "load"),
    "open_regions": ("crossmodal.data.regions", "open_regions"),
    "TextDB": ("crossmodal.data.texts", "TextDB"),
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    # Public names resolve on first use, so that `import crossmodal` loads only the standard library.
    if name in _PUBLIC:
        from importlib import import_module

        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'crossmodal' has no attribute {name!r}")
