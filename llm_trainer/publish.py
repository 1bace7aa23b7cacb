"""The adapter as a folder, then as an image. Rank 0 only.

The same training gives the same bytes: keys are sorted, and nothing depends on the clock or on
this machine. The folder is renamed to its name when it is whole, so that a publication that fails
can be repeated alone, without training again.
"""

import json
import logging
import math
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_trainer import card, lineage
from llm_trainer.options import Job
from llm_trainer.watch import curve, lines
from peftjob import model_registry, oci, uploads
from peftjob.errors import PeftJobError

log = logging.getLogger("llm_trainer")

ADAPTER_DIR = "adapter"
PENDING_FILE = ".peftjob-trained.json"
"""Beside the adapter while it waits to be published: what was measured. Never published itself."""
LINEAGE_FILE = "peftjob.json"
_INPUT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the training measured. `metrics` go into the image, `timings` do not."""

    metrics: Mapping[str, Any]
    timings: Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """Where the adapter is now."""

    image: oci.Reference
    """With its digest."""
    uploaded: str | None
    """Where its files are as well, or None."""


def save(job: Job, model: Any, trained: Trained) -> Path:
    """Write the adapter of `model` (a PeftModel) and everything about it; the folder."""
    # Heavy, and not needed to publish what an earlier try has saved.
    from safetensors.torch import save_file

    from llm_trainer.data import template
    from llm_trainer.model.adapter import export

    folder = job.output_dir / ADAPTER_DIR
    beside = job.output_dir / f".{ADAPTER_DIR}.{os.getpid()}"
    for left in job.output_dir.glob(f".{ADAPTER_DIR}.*"):
        shutil.rmtree(left, ignore_errors=True)
    beside.mkdir(parents=True)
    exported = export(model)
    save_file(exported.weights, beside / "adapter_model.safetensors", metadata={"format": "pt"})
    base = lineage.base_model(job)
    config = _plain(exported.config) | {
        "base_model_name_or_path": base.name,
        "revision": base.revision,
    }
    _write_json(beside / "adapter_config.json", config)
    for name in _INPUT_FILES:
        if (job.model_dir / name).is_file():
            shutil.copyfile(job.model_dir / name, beside / name)
    given = job.spec.base_model.chat_template
    if given is not None and job.spec.task == "causal-lm":
        # Served as it was trained: this file goes before what the base model has.
        text = template.resolve(given, job.model_dir)
        (beside / template.FILE_NAME).write_text(text, encoding="utf-8")
    records = lines.read(job.output_dir)
    picture = curve.save([beside, job.output_dir], records, title=job.spec.name)
    readme = card.render(job, trained.metrics, picture=picture)
    (beside / "README.md").write_text(readme, encoding="utf-8")
    _write_json(beside / LINEAGE_FILE, _lineage(job, trained.metrics))
    for path in beside.iterdir():
        # safetensors writes 0600, which a server of another user could not read.
        path.chmod(0o644)
        _sync(path)
    beside.chmod(0o755)
    _sync(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    pending = {"metrics": dict(trained.metrics), "timings": dict(trained.timings)}
    _write_json(job.output_dir / PENDING_FILE, pending)
    _sync(job.output_dir / PENDING_FILE)
    _sync(job.output_dir)
    return folder


def pending(job: Job) -> Trained | None:
    """What an earlier try of this very job has trained and saved, but not published."""
    try:
        data = json.loads((job.output_dir / PENDING_FILE).read_text())
        saved = json.loads((job.output_dir / ADAPTER_DIR / LINEAGE_FILE).read_text())
        trained = Trained(metrics=data["metrics"], timings=data["timings"])
    except (OSError, ValueError, KeyError):
        return None
    return trained if saved == _lineage(job, trained.metrics) else None


def forget_pending(job: Job) -> None:
    """Note that the job is over: a try that comes now would train anew."""
    (job.output_dir / PENDING_FILE).unlink(missing_ok=True)


def push(job: Job, trained: Trained) -> Published:
    """Publish the saved folder: as an image, and as files where the spec says so.

    The adapter stays on the output volume, whether this fails or not.

    Raises:
        RegistryError: the registry refused.
        RegistryUnavailableError: it did not answer.
    """
    output, folder = job.spec.output, job.output_dir / ADAPTER_DIR
    image = destination(job)
    insecure = output.registry is not None and output.registry.insecure
    with _kept(folder, image, insecure=insecure):
        reference = oci.push(
            folder,
            oci.Reference.parse(image),
            annotations=annotations(job, trained.metrics),
            insecure=insecure,
        )
    uploaded = None
    if output.upload is not None:
        with _kept(folder, output.upload):
            names = oci.adapter_files(folder)
            uploaded = uploads.upload(folder, names, output.upload, os.environ)
    return Published(reference, uploaded)


def register(job: Job, image: oci.Reference) -> str | None:
    """Enter the published image in the Model Registry that the spec names; its name and version.

    None where there is none, or it refused: the adapter is published, which is what counts, and the
    line that says so has the command that enters it later.
    """
    server = job.spec.output.model_registry
    if server is None:
        return None
    registry = job.spec.output.registry
    insecure = registry is not None and registry.insecure
    try:
        return str(model_registry.register(image, server, name=job.spec.name, insecure=insecure))
    except Exception as err:  # the training is over and published: nothing may end it in an error
        command = ["peftjob", "adapter", "register", str(image), "--server", server]
        command += ["--name", job.spec.name, *(["--insecure"] if insecure else [])]
        log.warning("%s; register the adapter later with `%s`", err, shlex.join(command))
        return None


@contextmanager
def _kept(folder: Path, to: str, *, insecure: bool = False) -> Iterator[None]:
    """Say of an error what became of the adapter, and how it is published later."""
    try:
        yield
    except PeftJobError as err:
        option = " --insecure" if insecure else ""
        command = f"peftjob adapter push {shlex.quote(str(folder))} {shlex.quote(to)}{option}"
        raise type(err)(f"{err}; the adapter is kept: publish it with `{command}`") from err


def destination(job: Job) -> str:
    """Where the image goes: the spec's registry, else the embedded one, else the output volume."""
    spec = job.spec
    if spec.output.registry is not None:
        return spec.output.registry.ref
    if job.registry_dir is not None:
        folder = job.registry_dir / spec.namespace / spec.name
    else:
        folder = job.output_dir / "registry" / spec.name
    return f"oci-layout://{folder.absolute()}:latest"


def annotations(job: Job, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Of the image: what a registry's user wants to know without pulling it."""
    return oci.annotations_of(_lineage(job, metrics))


def _lineage(job: Job, metrics: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = _plain({**lineage.of(job), "metrics": metrics})
    return plain


def _plain(value: Any) -> Any:
    """As JSON has it; sets are sorted, for their order changes from run to run."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers.
    if value is None or isinstance(value, str | int | float):
        return getattr(value, "value", value)
    return str(getattr(value, "value", value))


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """A file's content, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
