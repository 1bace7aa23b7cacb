"""An adapter's folder as an image.

The image is one that containerd mounts, KServe and KAITO fetch, and skopeo, umoci and oras read:
an image manifest, an image config, and one layer with models/ and hard links to it in data/.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftjob.errors import ModelError, NotFoundError, RegistryError, UsageError
from peftjob.oci.images import current
from peftjob.oci.layer import Layer, adapter_layer, shell_architecture, shell_layer
from peftjob.oci.manifest import (
    CONFIG,
    CREATED,
    TAR_GZIP,
    TITLE,
    Descriptor,
    Manifest,
    digest_of,
    to_json_bytes,
)
from peftjob.oci.places import disk_errors, opened
from peftjob.oci.reference import Reference
from peftjob.oci.store import Store

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

EPOCH = "1970-01-01T00:00:00Z"
"""When an image was made, unless the caller's annotations say it. The time of the push would give
the same adapter another digest every time."""

_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_LAYER_TITLE = "adapter.tar.gz"
_SHELL_TITLE = "shell.tar.gz"
_MAX_HEADER_BYTES = 100 << 20
"""Of a safetensors file, as the format has it."""


def push(
    folder: Path,
    ref: Reference,
    *,
    annotations: Mapping[str, str],
    insecure: bool = False,
    shell: Path | None = None,
) -> Reference:
    """Publish the adapter in `folder` as an image and let the tag of `ref` point to it.

    The tag moves when everything else is there, so a push that dies leaves the old image. The same
    files and annotations give the same digest, and pushing them again uploads nothing. Names that
    begin with a dot are left out: they are other tools' state.

    Args:
        annotations: of the manifest. `org.opencontainers.image.created` also goes into the config;
            without it the image is dated to the epoch, so that its bytes don't depend on the clock.
        insecure: speak plain HTTP; loopback registries are spoken to in plain HTTP without it.
        shell: a static busybox, put into a layer below the adapter's. KServe's modelcar starts the
            image as a container and needs one; nothing else does.

    Returns:
        `ref` with the digest.

    Raises:
        ModelError: the folder holds no adapter, or pickles.
        UsageError: `ref` has no tag.
        RegistryError: the registry refused.
        RegistryUnavailableError: the registry did not answer as it should.
    """
    tag = ref.tag
    if tag is None:
        raise UsageError(f"can't push to {ref}: a push makes the digest; give a tag, as in name:v1")
    names = adapter_files(folder)
    architecture = shell_architecture(shell) if shell else "amd64"
    with opened(ref, insecure=insecure) as store, disk_errors(f"push {folder}"):
        making = adapter_layer(folder, names)
        # Where there is nothing yet, nothing can be there already: digested while it is sent.
        was_sent = _is_new(store) and store.put_unnamed(
            making.chunks(), lambda: making.layer().digest
        )
        layers = [shell_layer(shell).layer()] if shell else []
        layers.append(making.layer())
        config = _config(layers, created=annotations.get(CREATED, EPOCH), architecture=architecture)
        titles = [{TITLE: _SHELL_TITLE}, {TITLE: _LAYER_TITLE}][-len(layers) :]
        manifest = Manifest(
            config=_described(CONFIG, config),
            layers=tuple(
                Descriptor(TAR_GZIP, layer.digest, layer.size_bytes, title)
                for layer, title in zip(layers, titles, strict=True)
            ),
            annotations={CREATED: EPOCH, **annotations},
        )
        for blob, layer in zip(manifest.layers, layers, strict=True):
            if not (was_sent and layer is layers[-1]) and not store.has_blob(blob):
                with layer.open() as source:
                    store.put_blob(blob, source)
        if not store.has_blob(manifest.config):
            store.put_blob(manifest.config, io.BytesIO(config))
        body = manifest.to_bytes()
        if current(store, tag) != body:
            store.put_manifest(body, version=tag)
    return ref.with_digest(digest_of(body))


def _is_new(store: Store) -> bool:
    """Whether nothing is in the store, as far as it tells."""
    try:
        return not store.tags()
    except NotFoundError:
        return True
    except RegistryError:
        # Who may push need not be allowed to list.
        return False


def adapter_files(folder: Path) -> list[str]:
    """The files of an adapter as sorted relative paths.

    Raises:
        ModelError: it is no adapter in safetensors, or holds something that may not be published.
    """
    if not folder.is_dir():
        raise ModelError(f"no folder {folder}; name the folder that save_pretrained wrote")
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            path = Path(root, name)
            if name.startswith("."):
                continue
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ModelError(f"{path} is no regular file; put a copy of the file there")
            if path.is_file():
                names.append(path.relative_to(folder).as_posix())
    for needed in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if needed not in names:
            raise ModelError(
                f"{folder} holds no {needed}; save the adapter with save_pretrained (safetensors)"
            )
    pickles = sorted(name for name in names if Path(name).suffix.lower() in _PICKLES)
    if pickles:
        raise ModelError(
            f"{folder} holds pickles, which run code when they are loaded ({', '.join(pickles)}); "
            "remove them or save them as safetensors"
        )
    if not _is_safetensors(folder / ADAPTER_WEIGHTS):
        raise ModelError(
            f"{folder / ADAPTER_WEIGHTS} is no safetensors file; save the adapter again with "
            "save_pretrained"
        )
    return sorted(names)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """An adapter's configuration, and the shapes of its tensors by name; no weight is read.

    Raises:
        ModelError: it is no adapter in safetensors.
    """
    adapter_files(folder)
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        with (folder / ADAPTER_WEIGHTS).open("rb") as file:
            size_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size_bytes, _MAX_HEADER_BYTES)))
        shapes = {
            name: tuple(int(size) for size in tensor["shape"])
            for name, tensor in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as err:
        raise ModelError(f"{folder} holds a damaged adapter ({err}); save it again") from err
    if not isinstance(config, dict):
        raise ModelError(f"{folder / ADAPTER_CONFIG} is no JSON object; save the adapter again")
    return config, shapes


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as the format does: eight bytes of header size, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
        size_bytes = os.fstat(file.fileno()).st_size
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size_bytes - 8


def _config(layers: Sequence[Layer], *, created: str, architecture: str) -> bytes:
    """An image config. Its platform is a formality where there is nothing in the image to run."""
    return to_json_bytes(
        {
            "created": created,
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]} if len(layers) > 1 else {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": created, "created_by": "peftjob"} for _ in layers],
        }
    )


def _described(media_type: str, body: bytes) -> Descriptor:
    return Descriptor(media_type, digest_of(body), len(body))
