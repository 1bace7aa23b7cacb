"""Classes written against Kubeflow's abstract modelProvider and datasetProvider, as providers.

The contract, by method name, so that Kubeflow need not be installed here: the entry point names a
class whose instances have

    load_config(serialised_args)        JSON: {"uri": …, "dest": …, "revision": …, "kind": …}
    download_model_and_tokenizer()      for a model, or
    download_dataset()                  for a dataset

which leave the files directly in the folder `dest`. Such classes know their folder as the
constant VOLUME_PATH_MODEL or VOLUME_PATH_DATASET; while one runs, the constant of that name in its
module and in Kubeflow's is `dest`, so a class that writes there needs no change.

May import peftjob.errors and provider.{base,files,staging}.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftjob.errors import SourceError
from provider.base import Kind, Listing, RemoteFile, Request
from provider.files import list_folder
from provider.staging import remove

METHODS: dict[Kind, str] = {
    "model": "download_model_and_tokenizer",
    "dataset": "download_dataset",
}
_CONSTANTS: dict[Kind, str] = {"model": "VOLUME_PATH_MODEL", "dataset": "VOLUME_PATH_DATASET"}
_KUBEFLOW_CONSTANTS = "kubeflow.storage_initializer.constants"


def is_one(found: object) -> bool:
    """Whether `found` is such a class."""
    return (
        isinstance(found, type)
        and hasattr(found, "load_config")
        and any(hasattr(found, method) for method in METHODS.values())
    )


class StockProvider:
    """Runs such a class in a folder of its own and lists what it left there."""

    def __init__(self, stock_class: Any) -> None:
        self._class = stock_class

    def find(self, request: Request) -> Listing:
        """Run the class; the files are there when this returns.

        Raises:
            SourceError: the class has no method for the kind, or left no files.
        """
        name, method = self._class.__qualname__, METHODS[request.kind]
        if not hasattr(self._class, method):
            raise SourceError(
                f"{name}, the provider of {request.shown}, has no {method}(), so it can't fetch a "
                f"{request.kind}"
            )
        dest = request.scratch
        remove(dest)  # an attempt before this one may have left something
        dest.mkdir(parents=True)
        arguments = {
            "uri": request.uri,
            "dest": str(dest),
            "revision": request.revision,
            "kind": request.kind,
        }
        with _volume_path(self._class.__module__, _CONSTANTS[request.kind], dest):
            instance = self._class()
            instance.load_config(json.dumps(arguments))
            getattr(instance, method)()
        files = [_taken(file, dest) for file in list_folder(dest, source=request.shown)]
        if not files:
            raise SourceError(
                f"{name}, the provider of {request.shown}, left no files in the folder that "
                "load_config named as 'dest'"
            )
        return Listing(files)


def _taken(file: RemoteFile, dest: Path) -> RemoteFile:
    """Have the file moved rather than copied, unless it is a link to another one."""
    path = dest / file.path
    return file if path.is_symlink() else replace(file, take=path)


@contextmanager
def _volume_path(module: str, constant: str, dest: Path) -> Iterator[None]:
    """Point the constant at `dest` wherever the class can see it, and back afterwards."""
    owners = [
        sys.modules[name]
        for name in (module, _KUBEFLOW_CONSTANTS)
        if hasattr(sys.modules.get(name), constant)
    ]
    before = [getattr(owner, constant) for owner in owners]
    for owner in owners:
        setattr(owner, constant, str(dest))
    try:
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, constant, value)
