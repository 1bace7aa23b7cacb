"""Signatures of images with a key, as cosign makes and verifies them.

What is signed is a small JSON text ("simple signing") that names the image's digest. The text and
its signatures are an image of their own, in the same repository, under the tag `sha256-<hex>.sig`;
it also names the image as its subject, so that registries which know referrers list it, and where
one doesn't, it is in the index under the tag `sha256-<hex>`.

Who verifies decides what may be loaded: `verify` gives the reference with the digest that was
signed, and that one has to be loaded, not the tag, which may move in between.
"""

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjob.errors import RegistryError, UsageError
from peftjob.oci.images import current
from peftjob.oci.keys import private_key, public_key
from peftjob.oci.manifest import (
    CONFIG,
    INDEX,
    MANIFEST,
    MAX_JSON_BYTES,
    Descriptor,
    Manifest,
    digest_of,
    media_type_of,
    parse_object,
    to_json_bytes,
)
from peftjob.oci.places import opened
from peftjob.oci.reference import Reference
from peftjob.oci.store import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
ARTIFACT_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
SIGNATURE = "dev.cosignproject.cosign/signature"
PAYLOAD_TYPE = "cosign container image signature"
_MAX_SIGNATURES = 100


def sign(
    ref: Reference, key: Path, *, insecure: bool = False, env: Mapping[str, str] | None = None
) -> Reference:
    """Sign an image that is there already; signatures of other keys stay.

    Args:
        key: file with the private key.
        env: where COSIGN_PASSWORD is looked up; None is this process's environment.

    Returns:
        `ref` with the digest that was signed.

    Raises:
        UsageError: the file holds no such key, or its password is wrong.
        NotFoundError, RegistryError, RegistryUnavailableError: as push does.
    """
    private = private_key(key, os.environ if env is None else env)
    with opened(ref, insecure=insecure) as store:
        body = store.get_manifest(ref.version)
        sign_manifest(store, ref, body, private)
    return ref.with_digest(digest_of(body))


def sign_manifest(
    store: Store, ref: Reference, body: bytes, private: "EllipticCurvePrivateKey"
) -> None:
    """Sign the image with the manifest `body`, which is in the store; once with the same key.

    Args:
        ref: what the image is called; a signature says that too.
    """
    found = ref.with_digest(digest_of(body))
    if _is_signed(store, found, [private.public_key()]):
        return
    payload = _payload(found)
    annotations = {SIGNATURE: base64.b64encode(_sign(private, payload)).decode()}
    layer = Descriptor(SIMPLE_SIGNING, digest_of(payload), len(payload), annotations)
    if not store.has_blob(layer):
        store.put_blob(layer, io.BytesIO(payload))
    _add(store, Descriptor(media_type_of(body), digest_of(body), len(body)), [layer])


def verify(ref: Reference, keys: Sequence[Path], *, insecure: bool = False) -> Reference:
    """See that one of the keys signed the image that `ref` names now.

    Returns:
        `ref` with the digest that was signed: load this one.

    Raises:
        UsageError: a file holds no public key, or there is none.
        NotFoundError: no such image.
        RegistryError: none of the keys signed it.
        RegistryUnavailableError: the registry did not answer as it should.
    """
    if not keys:
        raise UsageError("no key to verify with; name the file of a public key")
    public = [public_key(key) for key in keys]
    with opened(ref, insecure=insecure) as store:
        found = ref.with_digest(digest_of(store.get_manifest(ref.version)))
        if _is_signed(store, found, public):
            return found
    names = ", ".join(str(key) for key in keys)
    raise RegistryError(f"{found} is not signed by {names}; don't load it, or push it with --sign")


def copy_signatures(source: Store, target: Store, subject: Descriptor) -> None:
    """Bring the signatures of an image, which both stores have, to those that the target has.

    They name the repository that they were made for, and are good elsewhere all the same: what
    counts is the digest. Raises as copy does.
    """
    there = _signatures(target, subject.digest)
    new = [layer for layer in _signatures(source, subject.digest) if layer not in there]
    for layer in new:
        if not target.has_blob(layer):
            target.put_blob(layer, io.BytesIO(b"".join(source.read_blob(layer))))
    if new:
        _add(target, subject, new)


def _is_signed(store: Store, found: Reference, keys: "Sequence[EllipticCurvePublicKey]") -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    for layer in _signatures(store, str(found.digest))[:_MAX_SIGNATURES]:
        try:
            signature = base64.b64decode(layer.annotations.get(SIGNATURE, ""), validate=True)
        except ValueError:
            continue
        payload = b"".join(store.read_blob(layer))
        for key in keys:
            try:
                key.verify(signature, payload, ec.ECDSA(SHA256()))
            except InvalidSignature:
                continue
            # The signature is good; now for what was signed. Another image's is not for this one.
            if _signed_digest(payload) == found.digest:
                return True
    return False


def _signatures(store: Store, digest: str) -> list[Descriptor]:
    """The signatures that are there for an image. Nothing of them is trusted."""
    body = current(store, _tag(digest))
    if body is None:
        return []
    return [
        layer
        for layer in Manifest.parse(body, where=f"the signature of {digest}").layers
        if layer.media_type == SIMPLE_SIGNING and layer.size_bytes <= MAX_JSON_BYTES
    ]


def _signed_digest(payload: bytes) -> Any:
    data = parse_object(payload, where="the signed text")
    try:
        critical = data["critical"]
        if critical["type"] != PAYLOAD_TYPE:
            return None
        return critical["image"]["docker-manifest-digest"]
    except (LookupError, TypeError):
        return None


def _payload(found: Reference) -> bytes:
    place = found.path if found.host is None else f"{found.host}/{found.path}"
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": place},
                "image": {"docker-manifest-digest": found.digest},
                "type": PAYLOAD_TYPE,
            },
            "optional": None,
        },
        separators=(",", ":"),
    ).encode()


def _add(store: Store, subject: Descriptor, new: Sequence[Descriptor]) -> None:
    """Put signatures beside those that are there, and the image's tag for them last."""
    tag = _tag(subject.digest)
    before = current(store, tag)
    layers = (*(Manifest.parse(before, where=tag).layers if before else ()), *new)
    config = to_json_bytes(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    described = Descriptor(CONFIG, digest_of(config), len(config))
    if not store.has_blob(described):
        store.put_blob(described, io.BytesIO(config))
    manifest = Manifest(described, layers, {}, subject=subject, artifact_type=ARTIFACT_TYPE)
    body = manifest.to_bytes()
    store.put_manifest(body, version=tag)
    if not store.lists_referrers(subject.digest):
        _list_referrer(store, subject, body, instead_of=before)


def _list_referrer(
    store: Store, subject: Descriptor, body: bytes, *, instead_of: bytes | None
) -> None:
    """Keep the index of what refers to the image, which a newer registry would keep itself.

    What others have entered stays, signatures of another kind included.
    """
    tag = subject.digest.replace(":", "-")
    there = current(store, tag)
    listed = parse_object(there, where=tag).get("manifests") if there else None
    gone = {digest_of(old) for old in (body, instead_of) if old}
    items = [
        item
        for item in (listed if isinstance(listed, list) else [])
        if not (isinstance(item, dict) and item.get("digest") in gone)
    ]
    ours = Descriptor(MANIFEST, digest_of(body), len(body)).to_json()
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [*items, ours | {"artifactType": ARTIFACT_TYPE}],
    }
    store.put_manifest(to_json_bytes(index), version=tag)


def _tag(digest: str) -> str:
    return f"{digest.replace(':', '-')}.sig"


def _sign(key: "EllipticCurvePrivateKey", payload: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    return key.sign(payload, ec.ECDSA(SHA256()))
