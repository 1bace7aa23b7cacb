"""Wait until somebody else has filled the volume.

May import peftjob.errors and storage_initializer.{inputs,workspace}.
"""

import logging
import time

from peftjob.errors import RetryableError
from storage_initializer.inputs import Inputs
from storage_initializer.workspace import Failure, Workspace

POLL_EVERY_S = 1.0
SAY_EVERY_S = 30.0
OLD_FAILURE_HOLDS_S = 20.0
"""A failed.json that was there before the wait began may be of an earlier run, which the one that
fills the volume is about to remove; it is believed when it is still there after this time."""

log = logging.getLogger(__name__)


def wait(workspace: Workspace, inputs: Inputs, *, timeout_s: float) -> Failure | None:
    """Return when the marker speaks of these inputs, or with the failure that says it never will.

    Raises:
        RetryableError: neither has come within `timeout_s`.
    """
    began = time.monotonic()
    said = began - SAY_EVERY_S
    old = workspace.failure()
    while not workspace.is_ready(inputs):
        waited_s = time.monotonic() - began
        failure = workspace.failure()
        if failure != old:
            old = None
        if failure is not None and (old is None or waited_s >= OLD_FAILURE_HOLDS_S):
            return failure
        what = _what_is_missing(workspace)
        if waited_s >= timeout_s:
            raise RetryableError(
                f"waited {timeout_s:.0f} s and {what}; see the log of the init container "
                "storage-initializer of the Master"
            )
        if time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            log.info("waiting for the Master: %s (%.0f of %.0f s)", what, waited_s, timeout_s)
        time.sleep(min(POLL_EVERY_S, timeout_s - waited_s))
    log.info("all inputs are in %s", workspace.root)
    return None


def _what_is_missing(workspace: Workspace) -> str:
    if workspace.has_other_inputs():
        return f"{workspace.root} still holds the inputs of another job"
    return f"the inputs are not in {workspace.root} yet"
