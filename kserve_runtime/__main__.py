"""python -m kserve_runtime: fetch, load, warm up, serve."""

import logging
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kserve_runtime.args import Settings, parse_args
from kserve_runtime.listener import bind
from kserve_runtime.sources import FetchedAdapter, check_base_model, fetch_adapter
from peftjob.errors import PeftJobError, UsageError, exit_with, run_main

if TYPE_CHECKING:
    from kserve_runtime.tokenizer import PromptTokenizer
    from kserve_runtime.transformers_engine import TransformersEngine

log = logging.getLogger("kserve_runtime")


def main(argv: Sequence[str]) -> NoReturn:
    """Serve until SIGTERM; exits 0 then, or with the code of what went wrong before."""
    try:
        settings = parse_args(argv)
    except PeftJobError as err:
        exit_with(err)
    _set_up_logging(debug=settings.debug)
    signal.signal(signal.SIGTERM, _end_early)
    run_main(lambda: _run(settings), debug=settings.debug)


def _run(settings: Settings) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings.host, settings.http_port))
        check_base_model(settings.model_dir)
        cache = stack.enter_context(_adapter_cache(settings.adapter_dir))
        fetched = [
            fetch_adapter(adapter, cache, insecure=settings.insecure)
            for adapter in settings.adapters
        ]
        # Imported here, because they take seconds, which a wrong argument need not cost.
        from kserve_runtime.catalogue import Catalogue, Model
        from kserve_runtime.openai_routes import OpenAIRoutes
        from kserve_runtime.server import serve

        engine, tokenizer = _load(settings, fetched)
        stack.callback(engine.close)
        catalogue = Catalogue(
            base=settings.model_name,
            models={
                settings.model_name: Model(None, settings.model_name),
                **{adapter.name: Model(adapter.name, adapter.root) for adapter in fetched},
            },
            created=int(time.time()),
        )
        routes = OpenAIRoutes(engine, tokenizer, catalogue, max_new_tokens=settings.max_new_tokens)
        serve(listener, engine, routes, names=catalogue.names(), drain_s=settings.drain_s)


def _load(
    settings: Settings, adapters: Sequence[FetchedAdapter]
) -> "tuple[TransformersEngine, PromptTokenizer]":
    from transformers.utils import logging as transformers_logging

    from kserve_runtime.base_model import load_base_model
    from kserve_runtime.tokenizer import PromptTokenizer
    from kserve_runtime.transformers_engine import TransformersEngine

    transformers_logging.disable_progress_bar()
    begin = time.monotonic()
    tokenizer = PromptTokenizer(settings.model_dir)
    base = load_base_model(settings.model_dir, dtype=settings.dtype)
    base.check_vocabulary(tokenizer.vocab_size)
    engine = TransformersEngine(base, tokenizer.decode, batch_rows=settings.batch_rows)
    try:
        engine.warm_up()
        log.info(
            "base model %s loaded in %.1f s: %s on %s, context of %d tokens",
            settings.model_name,
            time.monotonic() - begin,
            str(base.module.dtype).removeprefix("torch."),
            base.device,
            base.context_tokens,
        )
        for adapter in adapters:
            tokenizer.use_adapter(adapter.name, adapter.folder)
            info = engine.load_adapter(adapter.name, adapter.folder)
            log.info(
                "adapter %s loaded: rank %d, %d modules, %s",
                info.name,
                info.rank,
                info.modules,
                adapter.digest,
            )
    except BaseException:
        engine.close()
        raise
    return engine, tokenizer


@contextmanager
def _adapter_cache(folder: Path | None) -> Iterator[Path]:
    """The folder that adapters are fetched to; a temporary one is gone afterwards."""
    if folder is None:
        with TemporaryDirectory(prefix="adapters-") as temporary:
            yield Path(temporary)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise UsageError(f"--adapter_dir {folder} can't be made: {err.strerror}") from err
    yield folder


def _set_up_logging(*, debug: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    log.setLevel(logging.INFO)
    if not debug:
        # What libraries warn of is for those who write code on them.
        warnings.simplefilter("ignore")


def _end_early(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM while loading: leave at once, through the context managers."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main(sys.argv[1:])
