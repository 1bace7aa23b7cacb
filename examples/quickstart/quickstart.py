"""The whole way on one machine: base model, dataset, train, publish, serve, ask.

    hack/quickstart [--model URI] [--dataset URI] [--registry HOST:PORT/NAME] [--home DIR]

Run by hack/quickstart, which installs first. Everything it makes lies in one folder, and is used
again the next time. The last line is one JSON object, also in result.json in that folder.
"""

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from examples.quickstart.questions import Pair, answer_all, read_pairs, share_exact
from peftjob import (
    DatasetSource,
    LocalCluster,
    Registry,
    Service,
    TrainerParams,
    TrainingClient,
    oci,
)
from peftjob.cli.options import source_uri
from peftjob.errors import NotFoundError, run_main
from peftjob.inference import model_name
from peftjob.job import Job
from peftjob.progress import Result
from peftjob.terminal import TrainingBar, duration, table

JOB = "k8s-docs"
WORKERS = 2
QUESTIONS = 50
SHOWN = 3
# Found by trying, for this model and data: a high rank and learning rate, because a few hundred
# sentences are to be learnt by heart in a minute.
RECIPE = TrainerParams.parse(
    {
        "method": {"r": 32, "lora_alpha": 32},
        "training": {
            "num_train_epochs": 20,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "max_length": 256,
        },
    }
)


class Steps:
    """Numbers the steps and says how long each took."""

    def __init__(self, console: Console, count: int) -> None:
        self._console = console
        self._count = count
        self._done = 0

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._done += 1
        self._console.print(f"\n[bold]{self._done}/{self._count} {title}[/bold]")
        begin = time.monotonic()
        yield
        self._console.print(f"  {duration(time.monotonic() - begin)}", style="dim")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    args = _parser().parse_args(argv)
    # As Ctrl-C does: what was started is stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_main(lambda: _run(args), debug=args.debug)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hack/quickstart", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", metavar="FOLDER|URI", help="a base model of yours, such as hf://org/name"
    )
    parser.add_argument(
        "--dataset", metavar="FILE|URI", help="a dataset of yours, such as ./rows.jsonl"
    )
    parser.add_argument("--registry", metavar="REF", help="host:port/name, to push the adapter to")
    parser.add_argument("--home", type=Path, default=Path(".quickstart"), metavar="DIR")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _run(args: argparse.Namespace) -> int:
    begin = time.monotonic()
    console = Console(stderr=False, soft_wrap=True, highlight=False)
    given = source_uri("--model", args.model, "./folder")
    rows = source_uri("--dataset", args.dataset, "./rows.jsonl")
    home = args.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    client = TrainingClient(cluster=LocalCluster(home / "cluster"))
    steps = Steps(console, 6)
    with steps.step("Base model"):
        model = given or _make_model(home / "quickstart-llama", console)
        console.print(f"  {model}")
    with steps.step("Dataset"):
        dataset, asked = _dataset(rows, home / "dataset", console)
    with steps.step(f"Train: a PyTorchJob with {WORKERS} workers on the local cluster"):
        job, result = _train(client, model, dataset, args.registry, console)
    with steps.step("Publish"):
        _show_image(result.adapter, console)
    with steps.step("Serve"):
        service = _serve(client, job, model, result.adapter, console)
    try:
        with steps.step(f"Ask {model_name(model)} and {JOB} the same questions"):
            names = (model_name(model), JOB)
            before, after = (answer_all(service.wait(), name, asked) for name in names)
    finally:
        service.stop()
    seconds = time.monotonic() - begin
    outcome = {
        "heldout_loss_before": result.eval_loss_before,
        "heldout_loss_after": result.eval_loss_after,
        "exact_before": share_exact(asked, before),
        "exact_after": share_exact(asked, after),
        "tokens_per_s": round(result.tokens_per_s, 1),
        "adapter": result.adapter,
        "seconds": round(seconds, 1),
        "workers": result.workers,
    }
    _show(console, home, asked[:SHOWN], before, after, outcome)
    line = json.dumps(outcome)
    (home / "result.json").write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 0


def _make_model(folder: Path, console: Console) -> str:
    from examples.quickstart.base_model import make_base_model

    with Progress(
        TextColumn("  pre-training on Python's docstrings"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[detail]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=1, detail="", visible=False)

        def show(step: int, total: int, loss: float) -> None:
            bar.update(task, completed=step, total=total, detail=f"loss {loss:.2f}", visible=True)
            if not console.is_terminal and step % 50 == 0:
                console.print(f"  pre-training: step {step}/{total} loss {loss:.2f}")

        make_base_model(folder, progress=show)
    return folder.as_uri()


def _dataset(uri: str | None, folder: Path, console: Console) -> tuple[DatasetSource, list[Pair]]:
    from examples.quickstart import dataset

    if uri:
        if not uri.startswith("file://"):
            console.print(f"  {uri} (questions are asked of file:// datasets only)")
            return DatasetSource(source=uri, eval_fraction=0.1), []
        path = Path(unquote(urlsplit(uri).path))
        pairs = read_pairs(path) if path.is_file() else []
        return DatasetSource(source=uri, eval_fraction=0.1), pairs[:QUESTIONS]
    dataset.make_dataset(folder)
    train = read_pairs(folder / dataset.TRAIN_FILE)
    held_out = read_pairs(folder / dataset.HELDOUT_FILE)
    console.print(
        f"  {len(train)} questions about the Kubernetes API to train on, {len(held_out)} held out; "
        f"for example: {train[0].question}"
    )
    source = DatasetSource(
        source=folder.as_uri(), files=(dataset.TRAIN_FILE,), eval_files=(dataset.HELDOUT_FILE,)
    )
    return source, train[:QUESTIONS]


def _train(
    client: TrainingClient,
    model: str,
    dataset: DatasetSource,
    registry: str | None,
    console: Console,
) -> tuple[Job, Result]:
    request: dict[str, Any] = {
        "name": JOB,
        "num_workers": WORKERS,
        "model_provider_parameters": model,
        "dataset_provider_parameters": dataset,
        "trainer_parameters": RECIPE,
        "output": Registry(ref=registry) if registry else None,
    }
    # What can't be run shows before the job of an earlier time goes.
    client.train(**request, dry_run=True)
    with suppress(NotFoundError):
        client.job(JOB).delete()
    job = client.train(**request)
    try:
        with TrainingBar(console) as bar:
            job.wait(on_poll=bar.update)
    except KeyboardInterrupt:
        job.delete()
        raise
    for pod in client.get_job_pod_names(JOB):
        console.print(f"  pod {pod}", style="dim")
    return job, job.result()


def _show_image(adapter: str, console: Console) -> None:
    """What rank 0 has pushed, read back from where it lies."""
    image = oci.inspect(oci.Reference.parse(adapter))
    console.print(f"  {adapter}", markup=False)
    base = image.annotations["org.opencontainers.image.base.name"]
    console.print(f"  an OCI image of {image.size_bytes / 1e6:.1f} MB, base model {base}")


def _serve(client: TrainingClient, job: Job, model: str, adapter: str, console: Console) -> Service:
    with suppress(NotFoundError):
        client.service(JOB).stop()
    service: Service = client.serve(JOB, model, {job.name: adapter})
    try:
        url = service.wait(timeout_s=120)
    except BaseException:
        service.stop()
        raise
    console.print(f"  {url}/openai/v1 answers as {model_name(model)} and as {JOB}")
    return service


def _show(
    console: Console,
    home: Path,
    shown: list[Pair],
    before: list[str],
    after: list[str],
    outcome: Mapping[str, object],
) -> None:
    for pair, base, tuned in zip(shown, before, after, strict=False):
        console.print(f"\n  [bold]{pair.question}[/bold]")
        console.print(f"  base     {_short(base)}", markup=False, style="dim")
        console.print(f"  adapter  {_short(tuned)}", markup=False)

    def number(name: str, layout: str) -> str:
        value = outcome[name]
        return "-" if value is None else format(value, layout)

    rows = [
        (
            "held-out loss",
            number("heldout_loss_before", ".3f"),
            number("heldout_loss_after", ".3f"),
        ),
        ("exact answers", number("exact_before", ".0%"), number("exact_after", ".0%")),
        ("tokens/s in training", "", number("tokens_per_s", ",.0f")),
    ]
    console.print()
    console.print(table(("", "base", "adapter"), rows))
    console.print()
    for title, text in (
        ("adapter", str(outcome["adapter"])),
        ("model, dataset", _relative(home)),
        ("jobs, logs", _relative(home / "cluster")),
    ):
        console.print(f"  {title:16} {text}", markup=False)
    command = Path(sys.executable).parent / "peftjob"
    local = f"--home {shlex.quote(_relative(home / 'cluster'))}"
    peftjob = shlex.quote(_relative(command))
    question = shlex.quote(shown[0].question if shown else "What is a Pod?")
    console.print("\nGo on with")
    for title, text in (
        (
            "ask it yourself",
            f"{peftjob} serve {JOB} {local} && {peftjob} ask {JOB} {question} {local}",
        ),
        ("see the job", f"{peftjob} get {JOB} {local}"),
        ("stop the server", f"{peftjob} serve {JOB} --stop {local}"),
    ):
        console.print(f"  {title:16} {text}", markup=False)
    console.print()


def _relative(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _short(text: str, limit: int = 110) -> str:
    # The base model's bytes need not be text.
    flat = " ".join(text.replace("\N{REPLACEMENT CHARACTER}", "").split()) or "(no words)"
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


if __name__ == "__main__":
    main()
