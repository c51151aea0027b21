"""What the scores of a corpus were made from, as a hash: the same hash, the same scores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from crossmodal.data.batches import Items


class Identity:
    """A sha256 over everything that was added, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, value: object) -> None:
        """Tensors by type, shape and content, containers and dataclasses by what they hold, the rest by `repr`."""
        if isinstance(value, Tensor):
            value = value.detach()
            content = (value.dequantize() if value.is_quantized else value).cpu().contiguous()
            self._hash.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
            self._hash.update(content.view(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, (Mapping, list, tuple)):
            self._hash.update(f"{type(value).__name__} {len(value)}\n".encode())
            for part in value.items() if isinstance(value, Mapping) else value:
                self.add(part)
        elif is_dataclass(value):
            self.add([(field.name, getattr(value, field.name)) for field in fields(value)])
        else:
            self._hash.update(f"{value!r}\n".encode())

    def watched(self, batches: Iterable[Items]) -> Iterator[Items]:
        """The same batches, each added on its way."""
        for items in batches:
            self.add(items)
            yield items

    def copy(self) -> Identity:
        other = Identity()
        other._hash = self._hash.copy()
        return other

    def digest(self) -> bytes:
        return self._hash.digest()
