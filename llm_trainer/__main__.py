"""Launcher or worker: torchrun gives its workers LOCAL_RANK, the launcher a folder for errors."""

import os
import sys

from llm_trainer.failures import ERROR_DIR_ENV

if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ or ERROR_DIR_ENV in os.environ:
        from llm_trainer.worker import main
    else:
        from llm_trainer.launch import main
    sys.exit(main(sys.argv[1:]))
