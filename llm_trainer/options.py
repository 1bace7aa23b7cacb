"""Arguments and environment → the job that this replica works on. Pure but for `failed_inputs`.

The spec comes from PEFTJOB_SPEC; where that is not set, from the arguments that the stock client
passes (peftjob.stock). --model_dir and --dataset_dir win over the workspace's own folders.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from peftjob.contract import (
    DESCRIBED_FILE,
    FAILED_MARKER,
    INPUTS_STATE_DIR,
    OUTPUT_DIR,
    OUTPUT_ENV,
    REGISTRY_DIR_ENV,
    SPEC_ENV,
    WORKSPACE,
    WORKSPACE_ENV,
)
from peftjob.errors import PermanentError, UsageError
from peftjob.spec import PeftJobSpec

STATE_FOLDER = Path(INPUTS_STATE_DIR).name
DATASET_MANIFEST = "dataset.json"
CACHE_FOLDER = "tokenised"
"""Beside the checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A spec, and where this replica finds and leaves things."""

    spec: PeftJobSpec
    model_dir: Path
    dataset_dir: Path
    state_dir: Path
    """What the storage initializer left about the inputs."""
    output_dir: Path
    """Results and checkpoints, of rank 0 only; the other replicas need not have it."""
    registry_dir: Path | None
    """The local cluster's embedded registry, or None."""
    debug: bool

    @property
    def cache_dir(self) -> Path | None:
        """Where tokenised rows are kept; None where this replica has no output folder."""
        return self.output_dir / CACHE_FOLDER if self.output_dir.is_dir() else None

    @property
    def dataset_manifest(self) -> Path | None:
        """The storage initializer's, of the dataset; None where the dataset is another folder."""
        is_fetched = self.dataset_dir.absolute() == self.state_dir.parent.absolute() / "dataset"
        return self.state_dir / DATASET_MANIFEST if is_fetched else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"llm_trainer: {message}; see python -m llm_trainer --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="llm_trainer",
        allow_abbrev=False,
        description="Tune a language model as PEFTJOB_SPEC says, or as the stock client's "
        "arguments say.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--model_dir", type=Path, help="folder of the base model")
    parser.add_argument("--dataset_dir", type=Path, help="folder of the dataset")
    stock = parser.add_argument_group("what the stock client passes, used without PEFTJOB_SPEC")
    for name in STOCK_OPTIONS:
        stock.add_argument(f"--{name}")
    return parser


STOCK_OPTIONS = (
    "model_uri",
    "transformer_type",
    "num_labels",
    "lora_config",
    "training_parameters",
)


def is_debug(argv: Sequence[str]) -> bool:
    """Whether tracebacks are asked for, known before anything is parsed."""
    return "--debug" in argv


def read(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stock_defaults: Callable[[], Mapping[str, Any]] | None = None,
) -> Job:
    """The job that `argv` and `env` describe.

    Args:
        stock_defaults: tells TrainingArguments' own, asked where a stock job has fields of a newer
            version than peftjob knows.

    Raises:
        UsageError: an argument that is not known.
        SpecError: problems in the spec.
    """
    args = _parser().parse_args(argv)
    text = env.get(SPEC_ENV)
    workspace = Path(env.get(WORKSPACE_ENV, WORKSPACE))
    state_dir = workspace / STATE_FOLDER
    if text:
        spec = PeftJobSpec.from_json(text)
    else:
        spec = _with_inputs(_stock_spec(argv, env, stock_defaults), state_dir)
    output = Path(env.get(OUTPUT_ENV, OUTPUT_DIR))
    if not text and not output.is_dir():
        # The stock client mounts no output volume: its one volume is the workspace.
        output = workspace / "output"
    registry = env.get(REGISTRY_DIR_ENV)
    return Job(
        spec=spec,
        model_dir=args.model_dir or workspace / "model",
        dataset_dir=args.dataset_dir or workspace / "dataset",
        state_dir=state_dir,
        output_dir=output,
        registry_dir=Path(registry) if registry else None,
        debug=args.debug,
    )


def _stock_spec(
    argv: Sequence[str],
    env: Mapping[str, str],
    defaults: Callable[[], Mapping[str, Any]] | None,
) -> PeftJobSpec:
    if not any(arg.split("=")[0] == "--model_uri" for arg in argv):
        raise UsageError(
            f"no job to work on: set {SPEC_ENV} to a PeftJobSpec as JSON, or pass the arguments of "
            "the stock client (--model_uri and the others)"
        )
    from peftjob.stock import spec_from_trainer_args

    return spec_from_trainer_args(
        [arg for arg in argv if arg != "--debug"],
        pod_name=env.get("HOSTNAME", ""),
        training_defaults=defaults,
    )


def _with_inputs(spec: PeftJobSpec, state_dir: Path) -> PeftJobSpec:
    """What the stock client told the init container alone: a template, a split, columns."""
    try:
        described = json.loads((state_dir / DESCRIBED_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return spec
    parts = {"base_model": described.get("model"), "dataset": described.get("dataset")}
    given = {name: part for name, part in parts.items() if part}
    return PeftJobSpec.parse({**json.loads(spec.to_json()), **given})


def failed_inputs(state_dir: Path) -> PermanentError | None:
    """The error by which the storage initializer gave up, or None."""
    path = state_dir / FAILED_MARKER
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as err:
        return PermanentError(f"the inputs failed, and {path} can't be read: {err}")
    error = PermanentError(str(data.get("message", "the inputs failed without a message")))
    error.exit_code = int(data.get("exit_code", PermanentError.exit_code))
    return error
