"""Which provider serves which scheme: a table of ours, then the entry points of others.

Providers are imported when they are asked for, so that fetching a file needs no hub client.
May import peftjob.errors and provider.{base,stock_classes}.
"""

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from peftjob.errors import SourceError
from provider import stock_classes
from provider.base import Provider

ENTRY_POINT_GROUP = "peftjob.providers"

BUILT_IN = {
    "file": "provider.files",
    "hf": "provider.hub",
    "http": "provider.web",
    "https": "provider.web",
    "oci": "provider.oci",
    "oci-layout": "provider.oci",
    "preset": "provider.preset",
    "pvc": "provider.pvc",
    "s3": "provider.s3",
}


def schemes() -> dict[str, str]:
    """Every known scheme, with the module or `module:object` that serves it, sorted."""
    others = {name: point.value for name, point in _installed().items()}
    return dict(sorted({**others, **BUILT_IN}.items()))


def provider_for(uri: str) -> Provider:
    """The provider of the URI's scheme.

    Raises:
        SourceError: the scheme is not known, or its provider can't be imported.
    """
    scheme = uri.partition("://")[0].lower() if "://" in uri else ""
    if scheme in BUILT_IN:
        return cast(Provider, import_module(BUILT_IN[scheme]))
    point = _installed().get(scheme)
    if point is None:
        what = (
            f"the scheme {scheme!r} of {uri!r} is not known" if scheme else f"{uri!r} has no scheme"
        )
        raise SourceError(
            f"{what}; known are {', '.join(f'{name}://' for name in schemes())}; to add one, "
            f"install a package with an entry point {scheme or 'SCHEME'!r} in the group "
            f"{ENTRY_POINT_GROUP}"
        )
    return _load(point)


def _load(point: EntryPoint) -> Provider:
    try:
        found = point.load()
    except Exception as err:
        raise SourceError(
            f"the provider {point.value!r} of {point.name}:// can't be imported: "
            f"{type(err).__name__}: {err}"
        ) from err
    if callable(getattr(found, "find", None)):
        return cast(Provider, found)
    if stock_classes.is_one(found):
        return stock_classes.StockProvider(found)
    raise SourceError(
        f"the provider {point.value!r} of {point.name}:// has neither find(request) nor "
        f"{' or '.join(stock_classes.METHODS.values())}; see provider.base"
    )


def _installed() -> dict[str, EntryPoint]:
    return {point.name.lower(): point for point in entry_points(group=ENTRY_POINT_GROUP)}
