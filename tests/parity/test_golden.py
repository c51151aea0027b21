"""One test for every reference case: ``<system>/<case>`` is dispatched on its system and kind."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .harness import HANDLERS, Case, cases

for _module in sorted(Path(__file__).parent.glob("kinds_*.py")):
    importlib.import_module(f"{__package__}.{_module.stem}")


@pytest.mark.parity
@pytest.mark.parametrize("folder", cases(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_case(folder: Path) -> None:
    case = Case(folder)
    key = (case.system, case.json["kind"])
    assert key in HANDLERS, f"{case.system}/{folder.name}: no check for kind {case.json['kind']!r}"
    HANDLERS[key](case)
    assert case.checked, f"{case.system}/{folder.name}: nothing was compared"
