"""torchrun for an elastic replica, without its table of failures: the launcher shows the line."""

import logging
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


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
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
