"""python -m kserve_runtime: fetch, load, warm up, serve."""

import logging
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kserve_runtime.adapter_cache import adapter_cache
from kserve_runtime.args import parse_args
from kserve_runtime.base_weights import check_trained_on, served_weights
from kserve_runtime.engines import check_engine, start_engine
from kserve_runtime.keys import KeyFile, Limits
from kserve_runtime.listener import bind, is_loopback
from kserve_runtime.settings import Settings
from kserve_runtime.sources import check_base_model, fetch_adapter, fingerprint
from peftjob.errors import PeftJobError, exit_with, run_main

if TYPE_CHECKING:
    from kserve_runtime.catalogue import Catalogue
    from kserve_runtime.engine import Engine
    from kserve_runtime.tokenizer import PromptTokenizer

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
    check_engine(settings.engine)
    with ExitStack() as stack:
        limits = Limits(concurrent=settings.key_concurrent, per_minute=settings.key_per_minute)
        keys = KeyFile(settings.api_keys, limits) if settings.api_keys else None
        admin_keys = KeyFile(settings.admin_keys, Limits()) if settings.admin_keys else None
        listener = stack.enter_context(bind(settings.host, settings.http_port))
        check_base_model(settings.model_dir)
        cache = stack.enter_context(adapter_cache(settings.adapter_dir))
        for adapter in filter(None, (settings.merged_adapter, *settings.adapters)):
            # A source that gives nothing need not wait for the base model either.
            fingerprint(adapter, cache, insecure=settings.insecure)
        # Imported here, because they take seconds, which a wrong argument need not cost.
        from kserve_runtime.adapter_routes import AdapterRoutes
        from kserve_runtime.gate import Gate
        from kserve_runtime.loading import AdapterLoader
        from kserve_runtime.metric_routes import MetricRoutes
        from kserve_runtime.metrics import Metrics
        from kserve_runtime.openai_routes import OpenAIRoutes
        from kserve_runtime.page import PageRoute
        from kserve_runtime.server import serve
        from kserve_runtime.watching import Watch

        engine, tokenizer, catalogue = _load_base(settings, cache)
        stack.callback(engine.close)
        metrics = Metrics(settings.model_name)
        metrics.watch_engine(engine)
        loader = AdapterLoader(
            engine,
            tokenizer,
            catalogue,
            metrics,
            cache=cache,
            insecure=settings.insecure,
            signed_by=settings.signed_by,
            base_weights=served_weights(settings.model_dir),
        )
        for adapter in settings.adapters:
            loader.load(adapter)
        watch = Watch(
            loader,
            catalogue,
            folder=settings.adapters_folder,
            strengths=settings.folder_strengths,
            interval_s=settings.watch_interval_s,
        )
        stack.callback(watch.close)
        watch.start()
        openai = OpenAIRoutes(
            engine,
            tokenizer,
            catalogue,
            metrics,
            max_new_tokens=settings.max_new_tokens,
            max_prompt_tokens=settings.max_prompt_tokens,
            deadline_s=settings.deadline_s,
        )
        gate = partial(
            Gate,
            metrics=metrics,
            keys=keys,
            admin_keys=admin_keys,
            open_metrics=settings.open_metrics,
            loopback=is_loopback(listener),
        )
        adapters = AdapterRoutes(loader, catalogue, metrics)
        routes = (openai, adapters, MetricRoutes(metrics), PageRoute())
        serve(listener, engine, catalogue, routes, gate=gate, drain_s=settings.drain_s)


def _load_base(settings: Settings, cache: Path) -> "tuple[Engine, PromptTokenizer, Catalogue]":
    from transformers.utils import logging as transformers_logging

    from kserve_runtime.catalogue import Catalogue, Model
    from kserve_runtime.tokenizer import PromptTokenizer

    transformers_logging.disable_progress_bar()
    begin = time.monotonic()
    name = settings.model_name
    tokenizer = PromptTokenizer(settings.model_dir)
    model = Model(name=name, template=tokenizer.template, root=name, created=int(time.time()))
    merged = None
    if settings.merged_adapter:
        merged = cache / "merged"
        fetched = fetch_adapter(
            settings.merged_adapter,
            merged,
            insecure=settings.insecure,
            signed_by=settings.signed_by,
        )
        check_trained_on(served_weights(settings.model_dir), name, merged)
        model = replace(
            model,
            template=tokenizer.read_template(name, merged),
            root=fetched.root,
            digest=fetched.digest,
            merged=True,
        )
    engine, how = start_engine(settings, tokenizer, merged=merged)
    log.info(
        "base model %s loaded in %.1f s: %s, context of %d tokens",
        name,
        time.monotonic() - begin,
        how,
        engine.capacity.context_tokens,
    )
    return engine, tokenizer, Catalogue(model)


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
