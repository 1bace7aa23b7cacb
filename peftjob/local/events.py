"""Events about objects, as `kubectl describe` shows them. Values in, values out."""

import uuid

from peftjob.local.replica import OPERATOR
from peftjob.local.store import Body, now


def render_event(about: Body, owner: Body, *, kind: str, reason: str, message: str) -> Body:
    """An Event of `kind` Normal or Warning that goes when `owner` does."""
    metadata, stamp = about["metadata"], now()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}",
            "ownerReferences": [owner],
        },
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "source": {"component": OPERATOR},
    }
