"""Key pairs for signing, as openssl makes them."""

import subprocess
from pathlib import Path


def make_keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """The files of a private and a public key."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    curve = ("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private))
    subprocess.run(["openssl", *curve], check=True, capture_output=True)
    to_public = ("ec", "-in", str(private), "-pubout", "-out", str(public))
    subprocess.run(["openssl", *to_public], check=True, capture_output=True)
    return private, public
