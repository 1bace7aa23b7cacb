"""Rows on this machine, looked at before a job is made of them.

The trainer looks at every row anyway; here a mistake costs a second, there a GPU that waits. May
import the trainer's reading of rows, which needs neither torch nor a tokenizer.
"""

from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from peftjob.errors import DataError
from peftjob.spec import PeftJobSpec

LOOKED_AT = 100_000
"""Rows, so that a large dataset keeps nobody waiting."""


def check(spec: PeftJobSpec) -> None:
    """Refuse rows that can't be trained on, where the dataset is on this machine.

    Raises:
        DataError: there are some among the first, or none at all.
    """
    if not spec.dataset.source.startswith("file://") or spec.task != "causal-lm":
        return
    try:
        from llm_trainer.data.files import select_path
        from llm_trainer.data.rows import samples, without_problems
    except ModuleNotFoundError:
        return  # The client alone is installed.
    path = Path(unquote(urlsplit(spec.dataset.source).path))
    try:
        root, selection = select_path(path, spec.dataset)
    except DataError:
        return  # The path may be one of the container's. What is wrong with it is said there.
    found = samples((*selection.train, *selection.held_out), root, spec.dataset)
    for _ in without_problems(islice(found, LOOKED_AT)):
        pass
