"""What an image's entry point is on this machine: a process of this interpreter."""

import re
import sys

_PYTHON = "{python}"

_OURS = {
    "storage-initializer": (_PYTHON, "-m", "storage_initializer"),
    "trainer": (_PYTHON, "-m", "llm_trainer"),
    "runtime": (_PYTHON, "-m", "kserve_runtime"),
}
# The stock client's images: same arguments, our containers (see peftjob.stock).
_STOCK = {
    "training-v1/storage-initializer": "storage-initializer",
    "training-v1/trainer-huggingface": "trainer",
}
_TAG = re.compile(r"(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?$")


def entry_point(image: str) -> list[str] | None:
    """The argv that `image` starts with, or None where only a container's own command helps.

    Known by the last part of its name: peftjob's three images in any registry, and the two of
    the stock client.
    """
    repository = _TAG.sub("", image)
    for name, ours in _STOCK.items():
        if repository.endswith(name):
            return _argv(ours)
    path = repository.split("/")
    if path[-1] in _OURS and (len(path) < 2 or path[-2] == "peftjob"):
        return _argv(path[-1])
    return None


def known() -> str:
    """The known images, for messages."""
    return ", ".join(f"peftjob/{name}" for name in _OURS)


def _argv(name: str) -> list[str]:
    return [sys.executable if part == _PYTHON else part for part in _OURS[name]]
