"""Where models and datasets come from: one module a source, chosen by the scheme of a URI.

    from provider import fetch
    fetch("hf://org/name", Path("/workspace/model"), kind="model", revision="v1")

What it does: lists what a URI stands for, streams it over several connections into a folder beside
the destination, checks size and digest of every file, resumes after a kill, and renames the folder
into place when all of it is there. A source of your own is a module with one function
(provider.base, examples/provider), or a class written against Kubeflow's abstract providers
(provider.stock_classes), installed under the entry point group `peftjob.providers`.

What it must not do: load models, read rows, write outside the destination and the folder beside
it, reach addresses that are not public unless they are allowed by name, log a secret.

May import peftjob.{answers,contract,errors,oci,presets,source_uris,spec}, huggingface_hub,
requests, urllib3, zstandard, botocore and anycrc; never torch, transformers, datasets, kubernetes
or kubeflow. Of peftjob.oci, the source of images takes what speaks to a registry and what unpacks
layers: neither is written twice.

    base          what a provider implements, and what fetch returns
    fetching      fetch
    __main__      the same from the command line
    table         scheme → provider

    files, hub, oci, preset, pvc, s3, stock_classes, web    the providers
    addresses     which hosts a URL may reach
    braces        {a,b} and {00..07} in a URL
    http          GET, streamed, with checked redirects;  exchange, headers, sessions: its parts
    s3_access     endpoint, keys and signatures of S3;  s3_checksum: what it knows of content

    selection     what of a repository a model or a dataset needs
    paths         names, checked before they touch the disk
    transfer      listing → folder
    work          what is done with each file;  connections: by several threads
    download      one range of a file;  retry: how often it is tried
    part          a file that is being gathered;  checksums: what it is held against
    packed        .gz and .zst
    staging       the folder beside the destination
    progress      bytes, rates, what is left
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
