"""What tasks on text share."""

import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from llm_trainer.model import load
from llm_trainer.options import Job
from peftjob.errors import ModelError


def length_limit(job: Job) -> tuple[int, str]:
    """Tokens a row may have, and in words where that comes from."""
    training = job.spec.training
    positions = load.positions(job.model_dir) or sys.maxsize
    limit = min(training.max_length, positions)
    reason = "training.max_length" if limit < positions else "the base model's positions"
    return limit, f"{limit} tokens ({reason})"


def token_types(folder: Path) -> bool:
    """Whether the model tells a first text from a second by types of tokens.

    Tokenizers make types for models that don't take them, too.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def fast_tokenizer(folder: Path) -> Any:
    """The tokenizer, if it tells where in the text its tokens are.

    Raises:
        ModelError: it does not, or there is none.
    """
    tokenizer = load.load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens are, which this "
            "task needs; put a tokenizer.json into the base model's folder"
        )
    return tokenizer


def pad_id(tokenizer: Any) -> int:
    """What fills up a batch: never looked at, so any token will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)
