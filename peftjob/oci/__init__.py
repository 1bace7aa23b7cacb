"""Adapter images: push, pull, sign and look at them, in a registry or in an image-layout folder.

    reference      a name of an image, parsed once                pure
    manifest       manifests and descriptors                      pure
    annotations    what an image says of itself                   pure
    adapter_config adapter_config.json, its fields of the types that PEFT gives them
    weights        the header of a safetensors file, held against its size
    compatibility  what vLLM, KAITO and our runtime can load      pure
    compression    gzip, written to the byte the same; zstd, read
    ahead          chunks made while those before them are used
    digest         a sha256 beside other work
    layer          layers, written to the byte the same
    tar            a layer, read forward only
    archive        layers, extracted by code of our own
    store          the Protocol that both places of images fulfil
    files          files that are whole or absent
    layout         an image-layout folder
    transport      one HTTP exchange and its retries
    auth           logins of Docker and Podman, tokens
    certificates   where Docker and Podman keep those of registries
    connection     one repository: logins, redirects, refusals
    upload         one blob into a registry
    download       one blob out of it
    registry       the distribution API
    places         from a reference to its store
    images         inspect, resolve, list, tag
    contents       pull
    keys           what signs and verifies
    signature      sign, verify
    adapter        push
    copies         copy

Every image is named by its digest, and every byte that is read is checked against it. This
package must not load models, know about jobs or clusters, or write outside the folder it is
given. May import peftjob.{answers,contract,errors,source_uris,spec}, the standard library,
requests, urllib3, zstandard and, in signature and keys, cryptography; no torch, no safetensors, no
huggingface_hub.
"""

from peftjob.oci.adapter import adapter_files, push, read_adapter
from peftjob.oci.annotations import annotations_in, annotations_of
from peftjob.oci.contents import pull
from peftjob.oci.copies import copy
from peftjob.oci.images import Image, inspect, list_tags, resolve, tag
from peftjob.oci.reference import Reference
from peftjob.oci.signature import sign, verify

__all__ = [
    "Image",
    "Reference",
    "adapter_files",
    "annotations_in",
    "annotations_of",
    "copy",
    "inspect",
    "list_tags",
    "pull",
    "push",
    "read_adapter",
    "resolve",
    "sign",
    "tag",
    "verify",
]
