"""An adapter's folder as an image.

The image is one that containerd mounts, KServe and KAITO fetch, and skopeo, umoci and oras read:
an image manifest, an image config, and one layer with models/ and hard links to it in data/.
"""

import io
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from peftjob.errors import ModelError, NotFoundError, RegistryError, UsageError
from peftjob.oci.adapter_config import config_in
from peftjob.oci.images import current
from peftjob.oci.keys import private_key
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
from peftjob.oci.signature import sign_manifest
from peftjob.oci.store import Store
from peftjob.oci.weights import shapes_in

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

EPOCH = "1970-01-01T00:00:00Z"
"""When an image was made, unless the caller's annotations say it. The time of the push would give
the same adapter another digest every time."""

_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_LAYER_TITLE = "adapter.tar.gz"
_SHELL_TITLE = "shell.tar.gz"


def push(
    folder: Path,
    ref: Reference,
    *,
    annotations: Mapping[str, str],
    insecure: bool = False,
    shell: Path | None = None,
    key: Path | None = None,
    env: Mapping[str, str] | None = None,
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
        key: file with a private key, with which the image is signed before the tag moves: who
            verifies never meets the tag on an image without its signature.
        env: where the key's COSIGN_PASSWORD is looked up; None is this process's environment.

    Returns:
        `ref` with the digest.

    Raises:
        ModelError: the folder holds no adapter, or pickles.
        UsageError: `ref` has no tag, the file holds no key, or `created` is no time.
        RegistryError: the registry refused.
        RegistryUnavailableError: the registry did not answer as it should.
    """
    tag = ref.tag
    if tag is None:
        raise UsageError(f"can't push to {ref}: a push makes the digest; give a tag, as in name:v1")
    created = _checked_time(annotations.get(CREATED, EPOCH))
    names = adapter_files(folder)
    private = private_key(key, os.environ if env is None else env) if key else None
    architecture = shell_architecture(shell) if shell else "amd64"
    with opened(ref, insecure=insecure) as store, disk_errors(f"push {folder}"):
        making = adapter_layer(folder, names)
        # Where there is nothing yet, nothing can be there already: digested while it is sent.
        was_sent = _is_new(store) and store.put_unnamed(
            making.chunks(), lambda: making.layer().digest
        )
        layers = [shell_layer(shell).layer()] if shell else []
        layers.append(making.layer())
        config = _config(layers, created=created, architecture=architecture)
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
        pushed = ref.with_digest(digest_of(body))
        if private:
            if current(store, pushed.version) is None:
                store.put_manifest(body, version=pushed.version)
            sign_manifest(store, ref, body, private)
        if current(store, tag) != body:
            store.put_manifest(body, version=tag)
    return pushed


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
        ModelError: it is no whole adapter in safetensors, or holds something that may not be
            published.
    """
    if not os.path.isdir(folder):
        raise ModelError(f"no folder {folder}; name the folder that save_pretrained wrote")
    names = []
    for root, folders, files in os.walk(folder, onerror=_unreadable):
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
    config_in(folder / ADAPTER_CONFIG)
    shapes_in(folder / ADAPTER_WEIGHTS)
    return sorted(names)


def _unreadable(err: OSError) -> NoReturn:
    raise ModelError(f"{err.filename} can't be read: {err.strerror}; check its rights") from err


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """An adapter's configuration, and the shapes of its tensors by name; no weight is read.

    Raises:
        ModelError: it is no whole adapter in safetensors.
    """
    adapter_files(folder)
    return config_in(folder / ADAPTER_CONFIG), shapes_in(folder / ADAPTER_WEIGHTS)


def _checked_time(text: str) -> str:
    """`text`, which who reads an image's config parses as RFC 3339 or refuses the image."""
    try:
        if "T" in text and datetime.fromisoformat(text).tzinfo:
            return text
    except ValueError:
        pass
    raise UsageError(f"the annotation {CREATED} is {text!r}; write it as {EPOCH}")


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
