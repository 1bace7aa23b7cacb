"""Push, pull and look at adapter images.

The image is one that containerd mounts, KServe and KAITO fetch, and skopeo, umoci and oras read:
an image manifest, an image config, and one layer with models/ and hard links to it in data/.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftjob.errors import ConflictError, ModelError, NotFoundError, RegistryError, UsageError
from peftjob.oci.archive import MAX_BYTES, MAX_FILES, Extraction, Layer, build_layer
from peftjob.oci.files import sync_folder
from peftjob.oci.layout import Layout
from peftjob.oci.manifest import (
    CONFIG,
    CREATED,
    DOCKER_CONFIG,
    MAX_JSON_BYTES,
    TAR_GZIP,
    TITLE,
    Descriptor,
    Manifest,
    digest_of,
    parse_object,
    to_json_bytes,
)
from peftjob.oci.reference import Reference
from peftjob.oci.registry import Registry
from peftjob.oci.store import Store

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

EPOCH = "1970-01-01T00:00:00Z"
"""When an image was made, unless the caller's annotations say it. The time of the push would give
the same adapter another digest every time."""

_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_LAYER_TITLE = "adapter.tar.gz"


@dataclass(frozen=True, slots=True)
class Image:
    """What a manifest says of an image."""

    reference: Reference
    """With the digest."""
    annotations: Mapping[str, str]
    size_bytes: int
    """Of all blobs, compressed."""
    layers: tuple[Descriptor, ...]


def push(
    folder: Path, ref: Reference, *, annotations: Mapping[str, str], insecure: bool = False
) -> Reference:
    """Publish the adapter in `folder` as an image and let the tag of `ref` point to it.

    The tag moves when everything else is there, so a push that dies leaves the old image. The same
    files and annotations give the same digest, and pushing them again uploads nothing. Names that
    begin with a dot are left out: they are other tools' state. The layer is built in TMPDIR.

    Args:
        annotations: of the manifest. `org.opencontainers.image.created` also goes into the config;
            without it the image is dated to the epoch, so that its bytes don't depend on the clock.
        insecure: speak plain HTTP; loopback registries are spoken to in plain HTTP without it.

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
    with (
        closing(_open_store(ref, insecure=insecure)) as store,
        tempfile.TemporaryDirectory(prefix="peftjob-push-") as scratch,
        _disk_errors(f"push {folder}"),
    ):
        layer_file = Path(scratch, "layer")
        layer = build_layer(folder, names, layer_file)
        config_file = Path(scratch, "config")
        config_file.write_bytes(_config(layer, annotations.get(CREATED, EPOCH)))
        manifest = Manifest(
            config=_described(CONFIG, config_file.read_bytes()),
            layers=(Descriptor(TAR_GZIP, layer.digest, layer.size_bytes, {TITLE: _LAYER_TITLE}),),
            annotations={CREATED: EPOCH, **annotations},
        )
        for blob, source in ((manifest.layers[0], layer_file), (manifest.config, config_file)):
            if not store.has_blob(blob):
                store.put_blob(blob, source)
        body = manifest.to_bytes()
        if _current(store, tag) != body:
            store.put_manifest(body, tag=tag)
    return ref.with_digest(digest_of(body))


def pull(
    ref: Reference,
    dest: Path,
    *,
    insecure: bool = False,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> Reference:
    """Fetch the files of an image into the new folder `dest`, which is whole or absent.

    `dest` can't be a mount point: it is made beside, as `.dest.<random>`, and renamed.

    The files are those under models/, or under data/ where only that is there. Every digest and
    size is checked before a byte is used.

    Args:
        max_bytes: of all files, uncompressed.
        max_files: of all members of the layers.

    Returns:
        `ref` with the digest that was pulled.

    Raises:
        ConflictError: `dest` is there and not an empty folder.
        NotFoundError: no such image.
        RegistryError: the image is not what its digest says, or holds what an adapter may not.
        RegistryUnavailableError: the registry did not answer as it should.
    """
    if dest.is_symlink() or (dest.exists() and not (dest.is_dir() and not any(dest.iterdir()))):
        raise ConflictError(f"{dest} is there already; remove it or name another folder")
    with closing(_open_store(ref, insecure=insecure)) as store, _disk_errors(f"pull to {dest}"):
        found, manifest = _read(store, ref)
        dest.parent.mkdir(parents=True, exist_ok=True)
        # Beside dest, and not in TMPDIR: only within one file system is a rename one step.
        with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as scratch:
            staging = Path(scratch, "image")
            extraction = Extraction(
                staging, max_bytes=max_bytes, max_files=max_files, where=str(found)
            )
            expected = _diff_ids(store, manifest, Path(scratch), where=str(found))
            diff_ids = []
            for layer in manifest.layers:
                _check_room(Path(scratch), layer)
                with store.open_blob(layer, scratch=Path(scratch)) as blob:
                    diff_ids.append(extraction.add_layer(blob, media_type=layer.media_type))
            if expected is not None and diff_ids != expected:
                raise RegistryError(
                    f"the layers of {found} are not those that its config lists; push it again"
                )
            os.replace(extraction.finish(), dest)
            sync_folder(dest.parent)
    return found


def inspect(ref: Reference, *, insecure: bool = False) -> Image:
    """Read an image's manifest; no blob is fetched. Raises as pull does."""
    with closing(_open_store(ref, insecure=insecure)) as store:
        found, manifest = _read(store, ref)
    size_bytes = sum(blob.size_bytes for blob in (manifest.config, *manifest.layers))
    return Image(found, manifest.annotations, size_bytes, manifest.layers)


def resolve(ref: Reference, *, insecure: bool = False) -> Reference:
    """`ref` with the digest that its tag points to now. Raises as pull does."""
    with closing(_open_store(ref, insecure=insecure)) as store:
        return ref.with_digest(digest_of(store.get_manifest(ref.version)))


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


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as the format does: eight bytes of header size, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
        size_bytes = os.fstat(file.fileno()).st_size
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size_bytes - 8


def _open_store(ref: Reference, *, insecure: bool) -> Store:
    if ref.host is None:
        return Layout(Path(ref.path))
    return Registry(
        ref.host,
        ref.path,
        plain_http=insecure or ref.is_loopback,
        use_proxies=not ref.is_loopback,
    )


def _read(store: Store, ref: Reference) -> tuple[Reference, Manifest]:
    body = store.get_manifest(ref.version)
    return ref.with_digest(digest_of(body)), Manifest.parse(body, where=str(ref))


def _current(store: Store, tag: str) -> bytes | None:
    try:
        return store.get_manifest(tag)
    except NotFoundError:
        return None


def _config(layer: Layer, created: str) -> bytes:
    """An image config. Its platform is a formality, for there is nothing in the image to run."""
    return to_json_bytes(
        {
            "created": created,
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            "history": [{"created": created, "created_by": "peftjob"}],
        }
    )


def _described(media_type: str, body: bytes) -> Descriptor:
    return Descriptor(media_type, digest_of(body), len(body))


def _diff_ids(store: Store, manifest: Manifest, scratch: Path, *, where: str) -> list[Any] | None:
    """What the config says that the layers are; None where it is no image config."""
    if manifest.config.media_type not in (CONFIG, DOCKER_CONFIG):
        return None
    if manifest.config.size_bytes > MAX_JSON_BYTES:
        raise RegistryError(f"the config of {where} is too large for one; push it again")
    with store.open_blob(manifest.config, scratch=scratch) as file:
        config = parse_object(file.read(), where=f"the config of {where}")
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list):
        raise RegistryError(f"the config of {where} lists no layers; push it again")
    return diff_ids


def _check_room(folder: Path, layer: Descriptor) -> None:
    """Fail before the download where it can't fit: compressed once, and at least that extracted."""
    free = shutil.disk_usage(folder).free
    needed = 2 * layer.size_bytes
    if free < needed:
        raise RegistryError(
            f"no room for {layer.digest} in {folder.parent}: {needed} bytes are needed and {free} "
            "are free; free some or name another folder"
        )


@contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    """Name what the disk refused."""
    try:
        yield
    except OSError as err:
        raise RegistryError(
            f"can't {what}: {err.strerror or err} ({err.filename or 'no file'}); check the folder, "
            "its rights and the room on it"
        ) from err
