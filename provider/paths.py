"""Names of files that come from elsewhere, checked before any of them touches the disk.

May import peftjob.errors.
"""

from collections.abc import Iterable

from peftjob.errors import SourceError

NAME_MAX_BYTES = 255
"""The longest name of one path component that Linux file systems take."""


def check_names(paths: Iterable[str], *, source: str) -> None:
    """Refuse names that could leave the folder they are written to, or clash within it.

    Raises:
        SourceError: naming the first offending path.
    """
    seen: set[str] = set()
    for path in paths:
        problem = _problem(path)
        if problem:
            raise SourceError(f"{source} lists a file named {path!r}, which {problem}; refused")
        if path in seen:
            raise SourceError(f"{source} lists the file {path!r} twice; refused")
        seen.add(path)
    for path in seen:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise SourceError(
                    f"{source} lists {parent!r} as a file and as the folder of {path!r}; refused"
                )
            parent = parent.rpartition("/")[0]


def _problem(path: str) -> str | None:
    if not path:
        return "is empty"
    if path.startswith("/"):
        return "is an absolute path"
    if "\\" in path:
        return "has a backslash in it"
    if not path.isprintable():
        return "has control characters in it"
    for part in path.split("/"):
        if part in ("", ".", ".."):
            return "has an empty part, '.' or '..' in it"
        if len(part.encode("utf-8", "surrogatepass")) > NAME_MAX_BYTES:
            return f"has a part longer than {NAME_MAX_BYTES} bytes"
    return None
