"""s3:// against moto's server."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftjob.errors import SourceError, SourceUnavailableError
from provider import fetch, http, part
from provider.base import Kind
from tests.fault_proxy import FaultProxy
from tests.hub_server import Fault
from tests.provider_tests.stores import KEYS, moto, s3

CONTENT = bytes(range(256)) * 4000


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A store with a model, data of odd names, and what came in parts."""
    with moto() as url:
        client = s3(url)
        client.create_bucket(Bucket="bkt")
        for key, body in {
            "a/m/config.json": b"{}",
            "a/m/model.safetensors": CONTENT,
            "a/m/pytorch_model.bin": b"pickle",
            "a/m/": b"",
            "a/mother/config.json": b"{}",
            "rows/part 1+2%.jsonl": b'{"text": "a"}\n',
            "rows/deep/x.csv": b"text\na\n",
            "rows/notes.md": b"x",
        }.items():
            client.put_object(Bucket="bkt", Key=key, Body=body)
        put_in_parts(client, "parts/even.bin", [CONTENT * 6, CONTENT * 6, b"end"])
        put_in_parts(client, "parts/odd.bin", [CONTENT * 6, CONTENT * 7, CONTENT * 6, b"end"])
        yield url


def put_in_parts(client: Any, key: str, parts: list[bytes]) -> None:
    upload = client.create_multipart_upload(Bucket="bkt", Key=key)["UploadId"]
    same = {"Bucket": "bkt", "Key": key, "UploadId": upload}
    etags = [
        client.upload_part(**same, PartNumber=number, Body=body)["ETag"]
        for number, body in enumerate(parts, 1)
    ]
    done = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    client.complete_multipart_upload(**same, MultipartUpload={"Parts": done})


@pytest.fixture
def proxy(store: str) -> Iterator[FaultProxy]:
    with FaultProxy(store) as proxy:
        yield proxy


def get(
    url: str, uri: str, dest: Path, kind: Kind = "dataset", files: tuple[str, ...] = ()
) -> list[str]:
    fetched = fetch(uri, dest, kind=kind, files=files, env={"AWS_ENDPOINT_URL": url, **KEYS})
    return [file.path for file in fetched.files]


def test_a_prefix_is_a_folder_of_which_a_model_is_taken(store: str, tmp_path: Path) -> None:
    assert get(store, "s3://bkt/a/m", tmp_path / "d", "model") == [
        "config.json",
        "model.safetensors",
    ]
    assert (tmp_path / "d/model.safetensors").read_bytes() == CONTENT


def test_a_dataset_keeps_every_part_of_its_keys_below_the_prefix(
    store: str, tmp_path: Path
) -> None:
    names = ["deep/x.csv", "part 1+2%.jsonl"]
    assert get(store, "s3://bkt/rows/", tmp_path / "d") == names
    assert get(store, "s3://bkt", tmp_path / "e", files=("rows/**",)) == [
        "rows/deep/x.csv",
        "rows/notes.md",
        "rows/part 1+2%.jsonl",
    ]


def test_one_object_is_one_file_whatever_it_is(store: str, tmp_path: Path) -> None:
    assert get(store, "s3://bkt/rows/notes.md", tmp_path / "d") == ["notes.md"]


def test_globs_stand_in_the_uri_or_beside_it(store: str, tmp_path: Path) -> None:
    assert get(store, "s3://bkt/rows/*", tmp_path / "a") == ["notes.md", "part 1+2%.jsonl"]
    assert get(store, "s3://bkt/rows/**/*.csv", tmp_path / "b") == ["deep/x.csv"]
    assert get(store, "s3://bkt/rows", tmp_path / "c", files=("*.md",)) == ["notes.md"]


def test_a_listing_of_many_pages_is_read_to_its_end(
    store: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    client = s3(store)
    for number in range(25):
        client.put_object(Bucket="bkt", Key=f"many/{number:02}.csv", Body=b"a\n1\n")
    assert len(get(proxy.url, "s3://bkt/many/", tmp_path / "d")) == 25
    assert len(proxy.asked_for("list-type")) == 3


@pytest.mark.parametrize("name", ["even.bin", "odd.bin"])
def test_what_was_uploaded_in_parts_is_checked_by_its_etag(
    name: str, store: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    assert get(store, f"s3://bkt/parts/{name}", tmp_path / "d") == [name]
    proxy.faults = [Fault(name, damage=True)]
    with pytest.raises(SourceError, match=rf"{name} of s3://bkt/parts/{name} is damaged: its ETag"):
        get(proxy.url, f"s3://bkt/parts/{name}", tmp_path / "e")


@pytest.mark.parametrize(
    ("algorithm", "header"),
    [("SHA256", "x-amz-checksum-sha256"), ("SHA1", "-sha1"), ("CRC32", "-crc32")],
)
def test_the_checksum_that_was_stored_is_held_against_the_content(
    algorithm: str, header: str, store: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    s3(store).put_object(
        Bucket="bkt", Key=f"sums/{algorithm}.csv", Body=b"a\n1\n", ChecksumAlgorithm=algorithm
    )
    get(store, f"s3://bkt/sums/{algorithm}.csv", tmp_path / "d")
    proxy.faults = [Fault(algorithm, damage=True)]
    with pytest.raises(SourceError, match=rf"damaged: its .*{header} is"):
        get(proxy.url, f"s3://bkt/sums/{algorithm}.csv", tmp_path / "e")


@pytest.mark.parametrize(
    ("name", "crc"), [("crc32c", "e3069283"), ("crc64nvme", "ae8b14860a799888")]
)
def test_a_crc_that_python_has_not_is_held_against_the_content(
    name: str, crc: str, store: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    """The values are those that their definitions give for these nine digits."""
    s3(store).put_object(Bucket="bkt", Key="digits.csv", Body=b"123456789")
    stored = {
        "x-amz-server-side-encryption": "aws:kms",
        f"x-amz-checksum-{name}": base64.b64encode(bytes.fromhex(crc)).decode(),
        "x-amz-checksum-crc32": "",
    }
    proxy.faults = [Fault("digits.csv", headers=stored, method="HEAD")]
    assert get(proxy.url, "s3://bkt/digits.csv", tmp_path / "d") == ["digits.csv"]
    proxy.faults.append(Fault("digits.csv", damage=True))
    with pytest.raises(SourceError, match=rf"its x-amz-checksum-{name} is .* should be {crc}"):
        get(proxy.url, "s3://bkt/digits.csv", tmp_path / "e")


def test_an_etag_that_is_no_md5_is_not_taken_for_one(
    store: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    s3(store).put_object(Bucket="bkt", Key="kms.csv", Body=b"a\n1\n")
    secret = {"x-amz-server-side-encryption": "aws:kms", "x-amz-checksum-crc32": ""}
    proxy.faults = [Fault("kms.csv", headers=secret | {"ETag": f'"{"0" * 32}"'}, method="*")]
    assert get(proxy.url, "s3://bkt/kms.csv", tmp_path / "d") == ["kms.csv"]


def test_an_object_that_changes_meanwhile_is_not_pieced_together(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.faults = [Fault("model.safetensors", headers={"ETag": '"other"'})]
    with pytest.raises(SourceUnavailableError, match="changed while it was being fetched"):
        get(proxy.url, "s3://bkt/a/m", tmp_path / "d", "model")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://none/x", "has no bucket none"),
        ("s3://bkt/nothing", "nothing in the bucket has this key or begins with 'nothing/'"),
        ("s3://bkt/a/m/*.gguf", "nothing in the bucket has this key"),
        ("s3://bkt/../other/x", r"has '\.' or '\.\.' in its key"),
        ("s3:///x", "names no bucket; write s3://bucket/prefix"),
        ("s3://b@d/x", "names no bucket"),
    ],
)
def test_what_is_not_there_is_one_line(uri: str, message: str, store: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        get(store, uri, tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_a_denial_says_what_to_check_and_shows_no_key(proxy: FaultProxy, tmp_path: Path) -> None:
    body = b"<Error><Code>AccessDenied</Code></Error>"
    proxy.faults = [Fault("", status=403, body=body, method="*")]
    with pytest.raises(SourceError, match=r"\(403 AccessDenied\); check that the keys") as caught:
        get(proxy.url, "s3://bkt/a/m", tmp_path / "d", "model")
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_an_object_that_is_gone_meanwhile_is_not_a_matter_of_the_keys(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.faults = [Fault("model.safetensors", status=404, method="*")]
    with pytest.raises(SourceError, match=r"does not exist \(404\); check the name of the object"):
        get(proxy.url, "s3://bkt/a/m", tmp_path / "d", "model")


def test_a_listing_that_does_not_come_to_its_end_is_asked_for_again(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DOCUMENT_S", 1.0)
    proxy.faults = [Fault("list-type", times=1, stall_after=50)]
    assert get(proxy.url, "s3://bkt/rows/", tmp_path / "d") == ["deep/x.csv", "part 1+2%.jsonl"]
    assert len(proxy.asked_for("list-type")) == 2


def page(*keys: str, after: str = "") -> bytes:
    """A page of a listing that says nothing of an encoding."""
    rows = "".join(
        f"<Contents><Key>{key}</Key><Size>4</Size><ETag>&quot;e&quot;</ETag></Contents>"
        for key in keys
    )
    more = f"<IsTruncated>{'true' if after else 'false'}</IsTruncated>"
    token = f"<NextContinuationToken>{after}</NextContinuationToken>"
    return f"<ListBucketResult>{rows}{more}{token}</ListBucketResult>".encode()


def test_keys_are_decoded_only_where_the_store_says_that_it_encoded_them(
    store: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    s3(store).put_object(Bucket="bkt", Key="plain/a+b%20.csv", Body=b"a\n1\n")
    etag = s3(store).head_object(Bucket="bkt", Key="plain/a+b%20.csv")["ETag"].encode()
    body = page("plain/a+b%20.csv").replace(b"&quot;e&quot;", etag)
    proxy.faults = [Fault("list-type", status=200, body=body)]
    assert get(proxy.url, "s3://bkt/plain/", tmp_path / "d") == ["a+b%20.csv"]


@pytest.mark.parametrize("tokens", ["a", "ab"])
def test_a_listing_without_an_end_is_one_line(
    tokens: str, proxy: FaultProxy, tmp_path: Path
) -> None:
    proxy.faults = [
        Fault("list-type", times=1, status=200, body=page(after=token)) for token in tokens * 9
    ]
    with pytest.raises(SourceError, match="lists s3://bkt/rows/ in a circle; ask who runs it"):
        get(proxy.url, "s3://bkt/rows/", tmp_path / "d")
    assert len(proxy.requests) == len(tokens) + 1


def test_the_region_of_a_bucket_elsewhere_is_named(proxy: FaultProxy, tmp_path: Path) -> None:
    elsewhere = {"x-amz-bucket-region": "eu-west-3"}
    proxy.faults = [Fault("", status=301, headers=elsewhere, method="*")]
    with pytest.raises(SourceError, match=r"in the region eu-west-3, .*set AWS_REGION=eu-west-3"):
        get(proxy.url, "s3://bkt/a/m", tmp_path / "d", "model")


def test_requests_are_signed_with_the_keys_of_the_environment(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    env = {"AWS_ENDPOINT_URL": proxy.url, **KEYS, "AWS_SESSION_TOKEN": "t", "AWS_REGION": "r-1"}
    fetch("s3://bkt/rows", tmp_path / "d", kind="dataset", env=env)
    for asked in proxy.requests:
        assert "/r-1/s3/aws4_request" in asked.headers["authorization"]
        assert asked.headers["x-amz-security-token"] == "t"


def test_every_amz_header_that_is_sent_is_signed(proxy: FaultProxy, tmp_path: Path) -> None:
    """S3 answers 403 HeadersNotSigned where one is not; moto doesn't look."""
    get(proxy.url, "s3://bkt/a/m", tmp_path / "d", "model")

    for asked in proxy.requests:
        signed = asked.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
        sent = {name for name in asked.headers if name.startswith("x-amz-")}
        assert sent <= set(signed.split(";"))
    assert any("x-amz-checksum-mode" in asked.headers for asked in proxy.requests)


def test_keys_come_from_a_profile_too(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text(
        "[lab]\naws_access_key_id = of-lab\naws_secret_access_key = x\nregion = lab-1\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    fetch("s3://bkt/rows", tmp_path / "d", kind="dataset", env={"AWS_ENDPOINT_URL": proxy.url})
    assert "of-lab" in proxy.requests[0].headers["authorization"]


def test_without_keys_what_is_public_can_be_read(
    store: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3(store).put_object(Bucket="bkt", Key="open/a.csv", Body=b"a\n1\n", ACL="public-read")
    fetch("s3://bkt/open", tmp_path / "d", kind="dataset", env={"AWS_ENDPOINT_URL": proxy.url})
    assert all("authorization" not in asked.headers for asked in proxy.requests)


def test_a_big_object_comes_over_several_connections(
    store: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part, "RANGE_BYTES", 256 * 1024)
    get(proxy.url, "s3://bkt/a/m", tmp_path / "d", "model")
    asked = [one.headers.get("range") for one in proxy.asked_for("model.safetensors")]
    assert sorted(asked) == sorted(
        f"bytes={at}-{min(at + 262144, len(CONTENT)) - 1}" for at in range(0, len(CONTENT), 262144)
    )
    assert (tmp_path / "d/model.safetensors").read_bytes() == CONTENT


def test_without_botocore_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from provider import fetch;"
        "sys.modules['botocore'] = None;"
        f"fetch('s3://bkt/x', Path({str(tmp_path / 'd')!r}), kind='model')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "s3:// needs botocore" in done.stderr
    assert "pip install 'peftjob[s3]'" in done.stderr
