"""How verbs print: YAML to stdout, what is for people to stderr."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_yaml(objects: list[dict[str, Any]]) -> None:
    """Objects of Kubernetes, as `kubectl apply` takes them."""
    import yaml

    print(yaml.safe_dump_all(objects, sort_keys=False, width=100), end="")


def console(file: Any = None) -> "Console":
    """That of rich, on stderr by default; it breaks no line that has to be copied."""
    from rich.console import Console

    return Console(file=file or sys.stderr, soft_wrap=True)
