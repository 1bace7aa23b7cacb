"""Run as a process: imports every module of some packages, prints the paths that this writes to.

    python -B writes.py PACKAGE …

Python tells of each file it opens to write, makes, moves or removes; what C code does it does not
(test_containers.py runs the whole on a file system that refuses).
"""

import importlib
import os
import pkgutil
import sys
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate"}


def record(event: str, args: tuple[Any, ...]) -> None:
    written = event in CHANGES or (
        event == "open" and isinstance(args[2], int) and args[2] & WRITING
    )
    if written and not isinstance(args[0], int):
        print(os.path.abspath(os.fsdecode(args[0])), flush=True)


def modules(package: str) -> list[str]:
    module = importlib.import_module(package)
    inside = pkgutil.walk_packages(module.__path__, f"{package}.")
    # The kernel is loaded by ctypes, and no module of Python's.
    names = (name for _, name, _ in inside)
    return [name for name in names if not name.endswith("__main__") and "_lora_kernel" not in name]


if __name__ == "__main__":
    sys.addaudithook(record)
    for package in sys.argv[1:]:
        for name in modules(package):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as err:
                # The engine on vLLM is imported only where vLLM is.
                if err.name != "vllm":
                    raise
