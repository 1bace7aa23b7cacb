"""http:// and https://."""

import hashlib
import shutil
import ssl
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from peftjob.errors import SourceError, SourceUnavailableError
from provider import Fetched, fetch, retry
from tests.hub_server import Fault, FileServer

CONTENT = bytes(range(256)) * 20_000  # 5 MB
ALLOWED = ["127.0.0.1", "localhost"]


def get(uri: str, dest: Path) -> Fetched:
    return fetch(uri, dest, kind="dataset", allow_private=ALLOWED)


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


@pytest.fixture(autouse=True)
def _content(web: FileServer) -> None:
    web.files["rows.jsonl"] = CONTENT


def test_a_url_becomes_one_file_named_by_its_path(web: FileServer, dest: Path) -> None:
    fetched = get(f"{web.url}/rows.jsonl?download=true", dest)
    assert (dest / "rows.jsonl").read_bytes() == CONTENT
    assert [(f.path, f.size, f.sha256) for f in fetched.files] == [
        ("rows.jsonl", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    ]


def test_the_right_sha256_passes_and_a_wrong_one_is_refused(web: FileServer, dest: Path) -> None:
    get(f"{web.url}/rows.jsonl#sha256={hashlib.sha256(CONTENT).hexdigest()}", dest)
    with pytest.raises(SourceError, match="damaged: its sha256 is"):
        get(f"{web.url}/rows.jsonl#sha256={'0' * 64}", dest.with_name("other"))
    assert sorted(p.name for p in dest.parent.iterdir()) == ["dataset"]


def test_503_is_tried_again_after_the_time_the_server_asks_for(
    web: FileServer, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    web.faults = [Fault("rows", times=2, status=503, headers={"Retry-After": "7"})]
    get(f"{web.url}/rows.jsonl", dest)
    assert slept == [7.0, 7.0]


def test_a_server_that_stays_down_is_unavailable(web: FileServer, dest: Path) -> None:
    web.faults = [Fault("rows", status=503)]
    with pytest.raises(SourceUnavailableError, match="answered 503"):
        get(f"{web.url}/rows.jsonl", dest)
    assert len(web.requests) == 1 + len(retry.DELAYS_S)


def test_nobody_listening_is_unavailable(web: FileServer, dest: Path) -> None:
    web.stop()
    with pytest.raises(SourceUnavailableError, match="can't be reached"):
        get(f"{web.url}/rows.jsonl", dest)


def test_a_broken_connection_goes_on_where_it_broke(web: FileServer, dest: Path) -> None:
    web.faults = [Fault("rows", times=1), Fault("rows", 3, cut_after=1_000_000)]
    get(f"{web.url}/rows.jsonl", dest)
    assert (dest / "rows.jsonl").read_bytes() == CONTENT
    ranges = [asked.headers.get("range") for asked in web.requests]
    assert ranges == ["bytes=0-0", None, *(f"bytes={n}000000-5119999" for n in (1, 2, 3))]


def test_a_server_without_ranges_is_read_again_from_the_start(web: FileServer, dest: Path) -> None:
    web.ranges = False
    web.faults = [Fault("rows", times=1, cut_after=10), Fault("rows", times=1, cut_after=1_000_000)]
    get(f"{web.url}/rows.jsonl", dest)
    assert (dest / "rows.jsonl").read_bytes() == CONTENT


def test_a_body_of_unknown_length_is_read_to_its_end(web: FileServer, dest: Path) -> None:
    web.ranges, web.chunked = False, True
    web.faults = [Fault("rows", times=2, cut_after=1_000_000)]
    fetched = get(f"{web.url}/rows.jsonl", dest)
    assert fetched.files[0].size == len(CONTENT)


def test_a_file_that_changes_meanwhile_is_not_pieced_together(web: FileServer, dest: Path) -> None:
    other = {"ETag": '"2"'}
    web.faults = [
        Fault("rows", times=1),
        Fault("rows", times=1, cut_after=1_000_000),
        Fault("rows", headers=other),
    ]
    with pytest.raises(SourceUnavailableError, match="changed while it was being fetched"):
        get(f"{web.url}/rows.jsonl", dest)
    web.faults, web.headers = [], other
    get(f"{web.url}/rows.jsonl", dest)
    assert (dest / "rows.jsonl").read_bytes() == CONTENT
    assert web.requests[-1].headers.get("range") is None


def test_a_file_of_unknown_version_is_not_pieced_together(web: FileServer, dest: Path) -> None:
    web.headers = {}
    web.faults = [Fault("rows", times=1), Fault("rows", times=1, cut_after=2_000_000)]

    def replaced(address: object) -> None:
        if len(web.requests) == 3:
            web.files["rows.jsonl"] = bytes(len(CONTENT))

    web.answered = replaced
    get(f"{web.url}/rows.jsonl", dest)
    assert (dest / "rows.jsonl").read_bytes() == bytes(len(CONTENT))


def test_a_middle_that_does_not_say_its_version_is_not_taken(web: FileServer, dest: Path) -> None:
    web.faults = [Fault("rows", times=1), Fault("rows", times=1, cut_after=2_000_000)]
    web.answered = lambda address: web.headers.clear() if len(web.requests) == 3 else None
    with pytest.raises(SourceUnavailableError, match="does not say which version"):
        get(f"{web.url}/rows.jsonl", dest)
    assert not dest.exists()


def test_redirects_are_followed_and_bounded(web: FileServer, dest: Path) -> None:
    web.faults = [Fault("/old", status=307, headers={"Location": "/rows.jsonl"})]
    get(f"{web.url}/old.jsonl", dest)
    assert (dest / "old.jsonl").read_bytes() == CONTENT
    web.faults = [Fault("/old", status=302, headers={"Location": "/old.jsonl"})]
    with pytest.raises(SourceError, match="redirects more than 10 times"):
        get(f"{web.url}/old.jsonl", dest)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("/", "names no file"),
        ("/..%2F..%2Fetc%2Fpasswd", "'/' in its name"),
        ("/%2e%2e", r"'\.\.' in it; refused"),
        ("/rows.jsonl#main", r"known is #sha256="),
        ("/missing.jsonl", r"does not exist \(404"),
    ],
)
def test_what_is_no_usable_file_is_one_line(
    tail: str, message: str, web: FileServer, dest: Path
) -> None:
    web.files[".."] = web.files["%2e%2e"] = b"x"
    with pytest.raises(SourceError, match=message) as caught:
        get(web.url + tail, dest)
    assert "\n" not in str(caught.value)
    assert not dest.exists()


def test_a_forbidden_file_says_what_to_do(web: FileServer, dest: Path) -> None:
    web.faults = [Fault("rows", status=403)]
    with pytest.raises(SourceError, match=r"needs a login \(403 Forbidden\); use a presigned"):
        get(f"{web.url}/rows.jsonl", dest)


def test_a_login_in_the_url_is_refused_and_not_shown(web: FileServer, dest: Path) -> None:
    with pytest.raises(SourceError, match="a login stands in the address") as caught:
        get(f"http://user:s3cret@127.0.0.1:{web.port}/rows.jsonl", dest)
    assert "s3cret" not in str(caught.value)


def test_a_signature_is_sent_but_never_shown(web: FileServer, dest: Path) -> None:
    fetched = get(f"{web.url}/rows.jsonl?X-Signature=s3cret", dest)
    assert "s3cret" in web.requests[0].target
    assert "s3cret" not in repr(fetched)
    with pytest.raises(SourceError) as caught:
        get(f"{web.url}/missing.jsonl?X-Signature=s3cret", dest)
    assert "s3cret" not in str(caught.value)


def test_an_unasked_for_encoding_is_refused(web: FileServer, dest: Path) -> None:
    web.headers["Content-Encoding"] = "gzip"
    with pytest.raises(SourceError, match="encoding 'gzip' although none was asked for"):
        get(f"{web.url}/rows.jsonl", dest)


def test_a_revision_is_refused(web: FileServer, dest: Path) -> None:
    with pytest.raises(SourceError, match="only hf:// has any"):
        fetch(f"{web.url}/rows.jsonl", dest, kind="dataset", revision="v1", allow_private=ALLOWED)


def test_several_files_stand_in_one_uri(web: FileServer, dest: Path) -> None:
    for name in ("a/rows-08.csv", "a/rows-09.csv", "a/rows-10.csv", "b.jsonl"):
        web.files[name] = name.encode()
    sha256 = hashlib.sha256(b"b.jsonl").hexdigest()
    fetched = get(f"{web.url}/a/rows-{{08..10}}.csv {web.url}/b.jsonl#sha256={sha256}", dest)
    names = ["b.jsonl", "rows-08.csv", "rows-09.csv", "rows-10.csv"]
    assert [file.path for file in fetched.files] == names
    assert (dest / "rows-09.csv").read_text() == "a/rows-09.csv"


def test_globs_choose_among_several_files(web: FileServer, dest: Path) -> None:
    web.files |= {"a.csv": b"1", "b.csv": b"2"}
    uri = f"{web.url}/{{a,b}}.csv"
    fetched = fetch(uri, dest, kind="dataset", files=["a*"], allow_private=ALLOWED)
    assert [file.path for file in fetched.files] == ["a.csv"]


def test_two_files_of_one_name_are_refused(web: FileServer, dest: Path) -> None:
    web.files |= {"a/x.csv": b"1", "b/x.csv": b"2"}
    with pytest.raises(SourceError, match=r"lists the file 'x\.csv' twice"):
        get(f"{web.url}/{{a,b}}/x.csv", dest)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/*.csv", r"has a wildcard, and a web server lists no files; write the names as \{a,b\}"),
        ("/x[0-9].csv", "has a wildcard"),
        ("/{a}.csv", r"\{a\} in .* stands for nothing; write \{a,b\} or \{00..07\}"),
        ("/{9..1}.csv", r"\{9..1\} in .* is no range"),
        ("/{1..99999}.csv", "is no range of at most 10000"),
        ("/{1..999}{1..999}.csv", "stand for 998001 files; 10000 at most"),
    ],
)
def test_what_stands_for_no_files_is_one_line(
    path: str, message: str, web: FileServer, dest: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        get(web.url + path, dest)
    assert web.requests == []


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ('attachment; filename="rows.csv"', "rows.csv"),
        ("attachment; filename*=UTF-8''r%C3%A9s.csv", "r\u00e9s.csv"),
        ('attachment; filename="setup.exe"', "download"),
        ('attachment; filename="../../evil.csv"', "download"),
        ("inline", "download"),
    ],
)
def test_an_address_without_a_data_files_name_takes_the_servers(
    sent: str, name: str, web: FileServer, dest: Path
) -> None:
    web.files["download"] = b"a\n"
    web.headers["Content-Disposition"] = sent
    assert [file.path for file in get(f"{web.url}/download?id=7", dest).files] == [name]


def test_a_servers_name_can_not_leave_the_folder(web: FileServer, dest: Path) -> None:
    web.files["download"] = b"a\n"
    web.headers["Content-Disposition"] = 'attachment; filename="/etc/evil.csv"'
    with pytest.raises(SourceError, match=r"named '/etc/evil\.csv'.*refused"):
        get(f"{web.url}/download", dest)


def test_a_connection_is_used_again(web: FileServer, dest: Path) -> None:
    web.files |= {f"{number}.csv": b"a\n" for number in range(40)}
    clients = set()
    web.answered = lambda address: clients.add(address)
    get(f"{web.url}/{{0..39}}.csv", dest)
    assert len(web.requests) == 80
    assert len(clients) <= 16  # eight threads for the sizes, eight for the content


def test_many_files_are_asked_for_at_once(web: FileServer, dest: Path) -> None:
    web.files |= {f"{number}.csv": b"a\n" for number in range(4)}
    together = threading.Barrier(4, timeout=60)
    web.answered = lambda address: together.wait()  # breaks unless all four are asked for
    get(f"{web.url}/{{0..3}}.csv", dest)


def test_of_many_requests_only_those_that_fail_are_made_again(web: FileServer, dest: Path) -> None:
    web.files |= {f"{number}.csv": b"a\n" for number in range(40)}
    failed = Fault("csv", times=1, status=503, method="*")

    def fail_now_and_then(address: object) -> None:
        if len(web.requests) % 9 == 0:
            web.faults.append(replace(failed))

    web.answered = fail_now_and_then
    get(f"{web.url}/{{0..39}}.csv", dest)
    assert len(web.requests) == 80 + len(web.faults)


def test_one_file_that_is_not_there_ends_the_asking(web: FileServer, dest: Path) -> None:
    web.files |= {f"{number}.csv": b"a\n" for number in range(1, 200)}
    with pytest.raises(SourceError, match=r"/0\.csv does not exist"):
        get(f"{web.url}/{{0..199}}.csv", dest)
    assert len(web.requests) < 200


def test_a_connection_that_the_server_closed_meanwhile_is_no_failure(
    web: FileServer, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "DELAYS_S", ())
    web.files |= {"a.csv": b"a\n", "b.csv": b"b\n"}
    web.faults = [Fault("a.csv", times=1, headers={"Keep-Alive": "timeout=0"}, hang_up=True)]
    get(f"{web.url}/{{a,b}}.csv", dest)
    assert (dest / "b.csv").read_bytes() == b"b\n"


@pytest.fixture
def tls(web: FileServer, tmp_path: Path) -> Path:
    """Make `web` speak TLS as localhost; the path of its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
    names = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(
        ["openssl", *options.split(), *names.split(), "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    web._http.socket = context.wrap_socket(web._http.socket, server_side=True)
    return cert


def test_https_checks_the_name_although_it_connects_to_an_address(
    web: FileServer, tls: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls))
    get(f"https://localhost:{web.port}/rows.jsonl", dest)
    assert (dest / "rows.jsonl").read_bytes() == CONTENT
    with pytest.raises((SourceError, SourceUnavailableError)):
        get(f"https://127.0.0.1:{web.port}/rows.jsonl", dest)


def test_an_unknown_authority_is_refused_with_the_next_step(
    web: FileServer, tls: Path, dest: Path
) -> None:
    with pytest.raises(SourceError, match=r"can't be verified.*REQUESTS_CA_BUNDLE"):
        get(f"https://localhost:{web.port}/rows.jsonl", dest)


def test_a_redirect_from_https_to_http_is_refused(
    web: FileServer, tls: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tls))
    web.faults = [Fault("rows", status=302, headers={"Location": "http://localhost:9/x.jsonl"})]
    with pytest.raises(SourceError, match="redirects from https to http"):
        get(f"https://localhost:{web.port}/rows.jsonl", dest)
