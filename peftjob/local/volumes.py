"""Volumes of a pod as folders, and container paths rewritten to them."""

import base64
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from peftjob.local.store import ApiError, Body, Store

SHARED_MEMORY = "/dev/shm"
"""The machine has one; an emptyDir mounted there is left to it."""


class NotReadyError(Exception):
    """A pod can't start yet; (reason, message) as the scheduler or the kubelet reports it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Mount:
    """Where a container sees a folder of this machine."""

    path: str
    folder: Path
    read_only: bool


class Volumes:
    """Finds and makes the folders of one cluster's volumes."""

    def __init__(self, root: Path, store: Store) -> None:
        self._root = root
        self._store = store

    def claim_folder(self, namespace: str, name: str) -> Path:
        return self._root / "volumes" / namespace / name

    def remove_claim(self, namespace: str, name: str) -> None:
        """Delete what lies on a claim."""
        folder = self.claim_folder(namespace, name)
        if folder.exists():
            gone = folder.with_name(f".{name}.deleted")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def clone(self, namespace: str, source: str, name: str) -> None:
        """Put what lies on the claim `source` on the claim `name`, which is about to be made.

        Files are linked, not copied: whoever may write to either replaces files, and a clone is
        made to be read.

        Raises:
            ApiError: there is no such claim.
        """
        if self._store.find("persistentvolumeclaims", namespace, source) is None:
            message = f'spec.dataSource: persistentvolumeclaim "{source}" not found'
            raise ApiError(422, "Invalid", message)
        target = self.claim_folder(namespace, name)
        beside = target.with_name(f".{name}.cloning")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        origin = self.claim_folder(namespace, source)
        origin.mkdir(parents=True, exist_ok=True)
        shutil.copytree(origin, beside, symlinks=True, copy_function=os.link)
        beside.rename(target)

    def mounts(self, pod: Body, container: Body, pod_folder: Path) -> list[Mount]:
        """The mounts of one container, the longest path first.

        Raises:
            NotReadyError: a claim, Secret or ConfigMap is missing, or a kind of volume that one
                machine does not have.
        """
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
        mounts = []
        for mount in container.get("volumeMounts") or ():
            path = mount["mountPath"].rstrip("/") or "/"
            volume = volumes.get(mount["name"])
            if volume is None:
                raise NotReadyError("InvalidPod", f"no volume is named {mount['name']!r}")
            if path == SHARED_MEMORY:
                continue
            folder, always_read_only = self._folder(pod, volume, pod_folder)
            if sub := mount.get("subPath"):
                folder = folder / sub
                if not folder.resolve().is_relative_to(folder.parents[len(Path(sub).parts) - 1]):
                    raise NotReadyError("InvalidPod", f"subPath {sub!r} leaves the volume")
                if not folder.exists():
                    folder.mkdir(parents=True)
            mounts.append(Mount(path, folder, always_read_only or bool(mount.get("readOnly"))))
        return sorted(mounts, key=lambda m: -len(m.path))

    def _folder(self, pod: Body, volume: Body, pod_folder: Path) -> tuple[Path, bool]:
        namespace = pod["metadata"]["namespace"]
        own = pod_folder / "volumes" / volume["name"]
        if claim := volume.get("persistentVolumeClaim"):
            name = claim["claimName"]
            if self._store.find("persistentvolumeclaims", namespace, name) is None:
                raise NotReadyError("Unschedulable", f'persistentvolumeclaim "{name}" not found')
            folder = self.claim_folder(namespace, name)
            folder.mkdir(parents=True, exist_ok=True)
            return folder, bool(claim.get("readOnly"))
        if "emptyDir" in volume:
            own.mkdir(parents=True, exist_ok=True)
            return own, False
        if (host := volume.get("hostPath")) is not None:
            return Path(host["path"]), False
        for key, plural, name_key in (
            ("secret", "secrets", "secretName"),
            ("configMap", "configmaps", "name"),
        ):
            if (source := volume.get(key)) is not None:
                own.mkdir(parents=True, exist_ok=True)
                optional = bool(source.get("optional"))
                data = self.read(plural, namespace, source[name_key], optional=optional)
                self._project(data, source, own)
                return own, True
        kind = next((key for key in volume if key != "name"), "nothing")
        raise NotReadyError(
            "InvalidPod",
            f"volume {volume['name']!r} is of kind {kind}; the local cluster has "
            "persistentVolumeClaim, emptyDir, hostPath, secret and configMap",
        )

    def remove_secrets(self, pod: Body, pod_folder: Path) -> None:
        """Delete the Secrets that a pod had mounted: a kubelet keeps them as long as it runs."""
        secrets = {v["name"] for v in pod["spec"].get("volumes") or () if v.get("secret")}
        for folder in pod_folder.glob("volumes/*") if secrets else ():
            if folder.name in secrets:
                shutil.rmtree(folder, ignore_errors=True)

    def read(
        self, plural: str, namespace: str, name: str, *, optional: bool = False
    ) -> dict[str, bytes]:
        """The data of a Secret or ConfigMap."""
        body = self._store.find(plural, namespace, name)
        if body is None and optional:
            return {}
        if body is None:
            singular = {"secrets": "secret", "configmaps": "configmap"}[plural]
            raise NotReadyError("CreateContainerConfigError", f'{singular} "{name}" not found')
        data = body.get("data") or {}
        if plural == "configmaps":
            return {key: value.encode() for key, value in data.items()}
        values = {key: base64.b64decode(value) for key, value in data.items()}
        plain = body.get("stringData") or {}
        return values | {key: value.encode() for key, value in plain.items()}

    def _project(self, data: dict[str, bytes], source: Body, folder: Path) -> None:
        items = source.get("items") or [{"key": key, "path": key} for key in data]
        for item in items:
            target = folder / item["path"]
            if item["key"] not in data and source.get("optional"):
                continue
            if item["key"] not in data or not target.resolve().is_relative_to(folder.resolve()):
                raise NotReadyError(
                    "CreateContainerConfigError", f"references non-existent key: {item['key']}"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data[item["key"]])
            target.chmod(0o600)


def rewrite(text: str, mounts: list[Mount]) -> str:
    """Put folders of this machine in place of the container's paths in `text`.

    Whole paths only: with a mount at /workspace, `/workspace/model` and `cd /workspace;` are
    rewritten, `/workspaces`, `a/workspace` and `file:///workspace` are not.
    """
    if not mounts:
        return text
    folders = {mount.path: str(mount.folder) for mount in mounts}
    paths = "|".join(re.escape(mount.path) for mount in mounts)
    return re.sub(rf"(?<![\w./-])({paths})(?![\w.-])", lambda found: folders[found[1]], text)
