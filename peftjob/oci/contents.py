"""The files of an image, pulled into a folder that is whole or absent."""

import os
import shutil
from contextlib import closing
from pathlib import Path

from peftjob.errors import ConflictError, RegistryError
from peftjob.oci.ahead import ahead
from peftjob.oci.archive import MAX_BYTES, MAX_FILES, Extraction
from peftjob.oci.files import folder_beside, sync_folder
from peftjob.oci.manifest import (
    Manifest,
)
from peftjob.oci.places import disk_errors, opened, read_manifest
from peftjob.oci.reference import Reference


def pull(
    ref: Reference,
    dest: Path,
    *,
    insecure: bool = False,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
) -> Reference:
    """Fetch the files of an image into the new folder `dest`, which is whole or absent.

    `dest` can't be a mount point: it is made beside, as `.peftjob-part-dest.<random>`, and renamed.
    What a pull that was killed left there is removed by the next one.

    The files are those under models/, or under data/ where only that is there. Layers are unpacked
    while they come; every digest and size is checked before `dest` is there.

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
    with opened(ref, insecure=insecure) as store, disk_errors(f"pull to {dest}"):
        found, manifest = read_manifest(store, ref)
        dest.parent.mkdir(parents=True, exist_ok=True)
        _check_room(dest.parent, manifest)
        # Beside dest, and not in TMPDIR: only within one file system is a rename one step.
        with folder_beside(dest) as scratch:
            extraction = Extraction(
                scratch / "image", max_bytes=max_bytes, max_files=max_files, where=str(found)
            )
            # Nothing is taken from it, but it is a part of what the digest names.
            for _ in store.read_blob(manifest.config):
                pass
            for layer in manifest.layers:
                with closing(ahead(store.read_blob(layer))) as chunks:
                    extraction.add_layer(chunks, media_type=layer.media_type)
            os.replace(extraction.finish(), dest)
            sync_folder(dest.parent)
    return found


def _check_room(folder: Path, manifest: Manifest) -> None:
    """Fail before the download where it can't fit: extracted it is at least as large."""
    free = shutil.disk_usage(folder).free
    needed = sum(layer.size_bytes for layer in manifest.layers)
    if free < needed:
        raise RegistryError(
            f"no room for the image in {folder}: {needed} bytes are needed and {free} are free; "
            "free some or name another folder"
        )
