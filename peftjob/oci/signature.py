"""Signatures of images with a key, as cosign makes and verifies them.

What is signed is a small JSON text ("simple signing") that names the image's digest. The text and
its signatures are an image of their own, in the same repository, under the tag `sha256-<hex>.sig`;
it also names the image as its subject, so that registries which know referrers list it, and where
one doesn't, it is in the index under the tag `sha256-<hex>`.

Keys are ECDSA P-256 in PEM; the private one may be encrypted, with COSIGN_PASSWORD. Who verifies
decides what may be loaded: `verify` gives the reference with the digest that was signed, and that
one has to be loaded, not the tag, which may move in between.
"""

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftjob.errors import NotFoundError, RegistryError, UsageError
from peftjob.oci.images import copy, current
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
PASSWORD_ENV = "COSIGN_PASSWORD"

MAKE_KEYS = (
    "make keys with `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` and "
    "`openssl ec -in key.pem -pubout -out pub.pem`"
)
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
    private = _private_key(key, os.environ if env is None else env)
    with opened(ref, insecure=insecure) as store:
        body = store.get_manifest(ref.version)
        found = ref.with_digest(digest_of(body))
        payload = _payload(found)
        if not _is_signed(store, found, [private.public_key()]):
            signature = base64.b64encode(_sign(private, payload)).decode()
            subject = Descriptor(media_type_of(body), digest_of(body), len(body))
            _add(store, subject, payload, signature)
    return found


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
    public = [_public_key(key) for key in keys]
    with opened(ref, insecure=insecure) as store:
        found = ref.with_digest(digest_of(store.get_manifest(ref.version)))
        if _is_signed(store, found, public):
            return found
    names = ", ".join(str(key) for key in keys)
    raise RegistryError(f"{found} is not signed by {names}; don't load it, or push it with --sign")


def copy_signatures(ref: Reference, to: Reference, *, insecure: bool = False) -> None:
    """Copy the signatures of the image `ref`, which has a digest, to where its copy `to` is.

    They name the repository that they were made for, and are good elsewhere all the same: what
    counts is the digest. Raises as copy does.
    """
    tag = _tag(str(ref.digest))
    with suppress(NotFoundError):
        copy(ref.with_tag(tag), to.with_tag(tag), insecure=insecure)


def _is_signed(store: Store, found: Reference, keys: "Sequence[EllipticCurvePublicKey]") -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256

    for payload, signature in _signatures(store, str(found.digest)):
        for key in keys:
            try:
                key.verify(signature, payload, ec.ECDSA(SHA256()))
            except InvalidSignature:
                continue
            # The signature is good; now for what was signed. Another image's is not for this one.
            if _signed_digest(payload) == found.digest:
                return True
    return False


def _signatures(store: Store, digest: str) -> Iterator[tuple[bytes, bytes]]:
    """The payloads and signatures that are there for an image. Nothing of them is trusted."""
    body = current(store, _tag(digest))
    if body is None:
        return
    manifest = Manifest.parse(body, where=f"the signature of {digest}")
    for layer in manifest.layers[:_MAX_SIGNATURES]:
        if layer.media_type != SIMPLE_SIGNING or layer.size_bytes > MAX_JSON_BYTES:
            continue
        try:
            signature = base64.b64decode(layer.annotations.get(SIGNATURE, ""), validate=True)
        except ValueError:
            continue
        yield b"".join(store.read_blob(layer)), signature


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


def _add(store: Store, subject: Descriptor, payload: bytes, signature: str) -> None:
    """Put the signature beside those that are there, and the image's tag for them last."""
    tag = _tag(subject.digest)
    layer = Descriptor(SIMPLE_SIGNING, digest_of(payload), len(payload), {SIGNATURE: signature})
    there = current(store, tag)
    before = Manifest.parse(there, where=tag).layers if there else ()
    layers = (*before, layer)
    config = to_json_bytes(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [item.digest for item in layers]},
        }
    )
    described = Descriptor(CONFIG, digest_of(config), len(config))
    for blob, data in ((layer, payload), (described, config)):
        if not store.has_blob(blob):
            store.put_blob(blob, io.BytesIO(data))
    manifest = Manifest(described, layers, {}, subject=subject, artifact_type=ARTIFACT_TYPE)
    body = manifest.to_bytes()
    store.put_manifest(body, version=tag)
    if not store.lists_referrers(subject.digest):
        _list_referrer(store, subject, body)


def _list_referrer(store: Store, subject: Descriptor, body: bytes) -> None:
    """Keep the index of what refers to the image, which a newer registry would keep itself."""
    tag = subject.digest.replace(":", "-")
    there = current(store, tag)
    listed = parse_object(there, where=tag).get("manifests") if there else None
    items = [
        item
        for item in (listed if isinstance(listed, list) else [])
        # A signature manifest that has more signatures takes the place of the one before.
        if not (isinstance(item, dict) and item.get("artifactType") == ARTIFACT_TYPE)
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


def _private_key(path: Path, env: Mapping[str, str]) -> "EllipticCurvePrivateKey":
    data = _read(path)
    if b"ENCRYPTED SIGSTORE" in data or b"ENCRYPTED COSIGN" in data:
        raise UsageError(f"{path} is encrypted in a way that only cosign reads; {MAKE_KEYS}")
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    password = env.get(PASSWORD_ENV, "").encode() or None
    encrypted = b"ENCRYPTED" in data
    if encrypted and password is None:
        raise UsageError(f"{path} is encrypted; set {PASSWORD_ENV}")
    try:
        key = load_pem_private_key(data, password if encrypted else None)
    except (ValueError, TypeError) as err:
        why = f", or {PASSWORD_ENV} is not its password" if encrypted else ""
        raise UsageError(f"{path} holds no private key in PEM{why}; {MAKE_KEYS}") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise UsageError(f"{path} holds no ECDSA P-256 key; {MAKE_KEYS}")
    return key


def _public_key(path: Path) -> "EllipticCurvePublicKey":
    data = _read(path)
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except ValueError as err:
        raise UsageError(f"{path} holds no public key in PEM; {MAKE_KEYS}") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise UsageError(f"{path} holds no ECDSA P-256 key; {MAKE_KEYS}")
    return key


def _read(path: Path) -> bytes:
    try:
        import cryptography  # noqa: F401  looked for before any request is made
    except ImportError as err:
        raise UsageError(
            "signatures need the package cryptography; pip install 'peftjob[sign]'"
        ) from err
    try:
        return path.read_bytes()
    except OSError as err:
        raise UsageError(f"can't read the key {path}: {err.strerror}; {MAKE_KEYS}") from err
