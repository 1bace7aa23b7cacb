"""Names of images."""

import pytest

from peftjob.errors import UsageError
from peftjob.oci import Reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "host", "path", "tag", "digest"),
    [
        ("ghcr.io/team/adapter", "ghcr.io", "team/adapter", "latest", None),
        ("oci://ghcr.io/team/adapter:v1", "ghcr.io", "team/adapter", "v1", None),
        ("localhost/a", "localhost", "a", "latest", None),
        ("localhost:5000/a:v1", "localhost:5000", "a", "v1", None),
        ("[::1]:5000/a/b__c", "[::1]:5000", "a/b__c", "latest", None),
        (f"ghcr.io/a@{DIGEST}", "ghcr.io", "a", None, DIGEST),
        (f"ghcr.io/a:v1@{DIGEST}", "ghcr.io", "a", "v1", DIGEST),
        ("oci-layout:///srv/registry", None, "/srv/registry", "latest", None),
        ("oci-layout:///srv/registry/:v1", None, "/srv/registry", "v1", None),
        ("oci-layout:///srv/a:b/c d:v1", None, "/srv/a:b/c d", "v1", None),
        (f"oci-layout:///srv/r:v1@{DIGEST}", None, "/srv/r", "v1", DIGEST),
    ],
)
def test_a_reference_is_read_part_by_part(
    text: str, host: str | None, path: str, tag: str | None, digest: str | None
) -> None:
    assert Reference.parse(text) == Reference(host, path, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "ghcr.io/team/adapter:v1",
        f"127.0.0.1:5000/a@{DIGEST}",
        f"[::1]/a:v1@{DIGEST}",
        f"oci-layout:///srv/r:v1@{DIGEST}",
        f"oci-layout:///srv/r@{DIGEST}",
    ],
)
def test_text_and_reference_are_each_others_inverse(text: str) -> None:
    assert str(Reference.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "adapter",
        "team/adapter",
        "https://ghcr.io/a",
        "ghcr.io/",
        "ghcr.io/Team/a",
        "ghcr.io/a//b",
        "ghcr.io/../b",
        "ghcr.io/a:.tag",
        "ghcr.io/a:" + "t" * 129,
        "ghcr.io/a@sha256:abc",
        "ghcr.io/a@sha512:" + "0" * 128,
        "gh cr.io/a",
        "ghcr.io:port/a",
        "oci-layout://relative/path",
        "oci-layout:///",
        "oci-layout:///a\nb",
    ],
)
def test_what_is_no_reference_is_refused_in_one_line_with_the_valid_forms(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)

    assert "oci-layout:///folder" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "oci://me:hunter2@ghcr.io/a",
        "me:hunter2@ghcr.io/a:v1",
        "me:hun/hunter2@ghcr.io/a",
        "https://me:hunter2@ghcr.io/a",
        "hunter2@ghcr.io/a",
    ],
)
def test_a_login_in_a_reference_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="holds no login") as caught:
        Reference.parse(text)

    assert "hun" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("127.9.9.9:80", True),
        ("[::1]:5000", True),
        ("127.example.com", False),
        ("localhost.example.com", False),
        ("10.0.0.1:5000", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, loopback: bool) -> None:
    assert Reference(host, "a").is_loopback is loopback


def test_another_tag_is_not_pinned_to_the_digest_of_the_first() -> None:
    assert Reference("ghcr.io", "a", "v1", DIGEST).with_tag("v2") == Reference("ghcr.io", "a", "v2")
