"""Adapter images: push, pull and look at them, in a registry or in an OCI image-layout folder.

    reference  a name of an image, parsed once              pure
    manifest   manifests and descriptors                    pure
    archive    the layer: written to the byte the same, extracted by code of our own
    store      the Protocol that both places of images fulfil
    files      files that are whole or absent
    layout     an image-layout folder
    transport  one HTTP exchange and its retries
    auth       logins of Docker and Podman, tokens
    registry   the distribution API
    adapter    push, pull, inspect, resolve

Every image is named by its digest, and every byte that is read is checked against it. This
package must not load models, know about jobs or clusters, or write outside the folder it is
given. May import peftjob.errors, peftjob.contract, peftjob.spec, the standard library and
requests; no torch, no safetensors, no huggingface_hub.
"""

from peftjob.oci.adapter import Image, inspect, pull, push, resolve
from peftjob.oci.reference import Reference

__all__ = ["Image", "Reference", "inspect", "pull", "push", "resolve"]
