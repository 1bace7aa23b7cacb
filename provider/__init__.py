"""Where models and datasets come from: one module a source, chosen by the scheme of a URI.

    from provider import fetch
    fetch("hf://org/name", Path("/workspace/model"), kind="model", revision="v1")

What it does: lists what a URI stands for, streams it into a folder beside the destination, checks
size and digest of every file, resumes after a kill, and renames the folder into place when all of
it is there. A source of your own is a module with one function (provider.base), or a class written
against Kubeflow's abstract providers (provider.stock_classes), installed under the entry point
group `peftjob.providers`.

What it must not do: load models, read rows, write outside the destination and the folder beside
it, reach addresses that are not public unless they are allowed by name, log a secret.

May import peftjob.errors, peftjob.contract, peftjob.spec, huggingface_hub, requests and urllib3;
never torch, transformers, datasets, kubernetes or kubeflow.

    base        what a provider implements, and what fetch returns
    fetching    fetch
    __main__    the same from the command line
    table       scheme → provider
    files, web, hub, stock_classes    the providers
    selection   what of a repository a model or a dataset needs
    addresses   which hosts a URL may reach
    http        GET, streamed, with checked redirects
    transfer, download, staging, paths, retry    how bytes get to the disk
"""

from provider.base import (
    Body,
    Fetched,
    FileRecord,
    Kind,
    Listing,
    Provider,
    RemoteFile,
    Request,
    Transfer,
    Unavailable,
)
from provider.fetching import fetch
from provider.table import schemes as providers

__all__ = [
    "Body",
    "Fetched",
    "FileRecord",
    "Kind",
    "Listing",
    "Provider",
    "RemoteFile",
    "Request",
    "Transfer",
    "Unavailable",
    "fetch",
    "providers",
]
