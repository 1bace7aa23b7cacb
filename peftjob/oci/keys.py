"""Keys that sign images and verify them: ECDSA P-256 in PEM.

The private one may be encrypted, with COSIGN_PASSWORD.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from peftjob.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import (
        EllipticCurvePrivateKey,
        EllipticCurvePublicKey,
    )

PASSWORD_ENV = "COSIGN_PASSWORD"
MAKE_KEYS = (
    "make keys with `openssl ecparam -name prime256v1 -genkey -noout -out key.pem` and "
    "`openssl ec -in key.pem -pubout -out pub.pem`"
)


def private_key(path: Path, env: Mapping[str, str]) -> "EllipticCurvePrivateKey":
    """The key in a file; `env` may have its password.

    Raises:
        UsageError: the file holds no such key, or its password is wrong.
    """
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


def public_key(path: Path) -> "EllipticCurvePublicKey":
    """The key in a file.

    Raises:
        UsageError: the file holds no such key.
    """
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
        raise UsageError(
            f"can't read the key {path}: {err.strerror}; correct the path or its rights, or "
            f"{MAKE_KEYS}"
        ) from err
