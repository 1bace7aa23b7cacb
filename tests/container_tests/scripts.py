"""The scripts of hack/, which have no suffix, as modules."""

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def load(path: str) -> Any:
    """The Python script at a path relative to the repository."""
    loader = SourceFileLoader(path.replace("/", "_"), str(ROOT / path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
