"""torchrun for an elastic replica, without its table of failures: the launcher shows the line."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import parse_args, run

from llm_trainer.failures import ERROR_DIR_ENV, describe, write
from peftjob.errors import RetryableError


def main(argv: Sequence[str]) -> int:
    """Run workers under torchrun, which reads PET_* itself."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(["-m", "llm_trainer", *argv]))  # type: ignore[no-untyped-call]
    except ChildFailedError as err:
        code = err.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as err:
        return 128 + err.sigval.value
    except (RendezvousError, DistError, ConnectionError) as err:
        return _left_alone(err)
    return 0


def _left_alone(err: Exception) -> int:
    """The replicas can't be met, or have ended while this one came."""
    text = " ".join(str(err).split())[:300]
    failure = describe(RetryableError(f"the other replicas can't be met: {text}"))
    write(Path(os.environ[ERROR_DIR_ENV]), -1, failure)
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
