"""Adapter images: push, pull, sign and look at them, in a registry or in an image-layout folder.

    reference     a name of an image, parsed once                  pure
    manifest      manifests and descriptors                        pure
    annotations   what an image says of itself                     pure
    compatibility what vLLM, KAITO and our runtime can load        pure
    compression   gzip, written to the byte the same; zstd, read
    ahead         chunks made while those before them are used
    digest        a sha256 beside other work
    layer         layers, written to the byte the same
    tar           a layer, read forward only
    archive       layers, extracted by code of our own
    store         the Protocol that both places of images fulfil
    files         files that are whole or absent
    layout        an image-layout folder
    transport     one HTTP exchange and its retries
    auth          logins of Docker and Podman, tokens
    certificates  where Docker and Podman keep those of registries
    connection    one repository: logins, redirects, refusals
    upload        one blob into a registry
    download      one blob out of it
    registry      the distribution API
    places        from a reference to its store
    images        inspect, resolve, list, tag, copy
    contents      pull
    adapter       push
    signature     sign, verify

Every image is named by its digest, and every byte that is read is checked against it. This
package must not load models, know about jobs or clusters, or write outside the folder it is
given. May import peftjob.{contract,errors,source_uris,spec}, the standard library, requests,
zstandard and, in signature only, cryptography; no torch, no safetensors, no huggingface_hub.
"""

from peftjob.oci.adapter import adapter_files, push, read_adapter
from peftjob.oci.annotations import annotations_in, annotations_of
from peftjob.oci.contents import pull
from peftjob.oci.images import Image, copy, inspect, list_tags, resolve, tag
from peftjob.oci.reference import Reference
from peftjob.oci.signature import copy_signatures, sign, verify

__all__ = [
    "Image",
    "Reference",
    "adapter_files",
    "annotations_in",
    "annotations_of",
    "copy",
    "copy_signatures",
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
