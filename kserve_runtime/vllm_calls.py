"""What vLLM is called with, and what it answers, in our words: its start, requests, tokens."""

import os
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from kserve_runtime.engine import Request, ScoredToken
from kserve_runtime.settings import Dtype
from kserve_runtime.vllm_mixes import KEPT_MIXES
from peftjob.errors import ModelError

ENVIRONMENT = {
    # Otherwise it reports each start to its makers.
    "VLLM_NO_USAGE_STATS": "1",
    # A fork would share our locks, and keep our port when we are gone.
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
}
"""What vLLM takes from the environment only, for the process that it begins."""

BASE_SLOTS = 1 if current_platform.is_cpu() else 0
"""Slots that the base model takes, as an adapter that changes nothing. On a CPU vLLM gives to rows
without an adapter the update of whatever is in the last slot, where other rows of the batch have
adapters (its pull requests 48421 and 49656)."""


def start_vllm(folder: Path, *, dtype: Dtype, rows: int, slots: int, max_rank: int) -> AsyncLLM:
    """vLLM with the model in `folder`.

    Args:
        folder: of the base model.
        dtype: auto is what vLLM makes of the model's own.
        rows: requests that run at once.
        slots: mixes of adapters that run at once, beside the base model.
        max_rank: of a mix; vLLM's memory and time grow with it.

    Raises:
        ModelError: vLLM can't serve it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments = AsyncEngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="safetensors",
        trust_remote_code=False,
        dtype=dtype,
        generation_config="vllm",  # requests say how to sample; nothing is added behind them
        max_num_seqs=rows,
        enable_lora=True,
        max_loras=slots + BASE_SLOTS,
        max_cpu_loras=slots + BASE_SLOTS + KEPT_MIXES,
        max_lora_rank=max_rank,
    )
    try:
        return AsyncLLM.from_engine_args(arguments)
    except Exception as err:  # whatever its kernels, its config or the model fail with
        reason = " ".join(str(err).split())[:500]
        raise ModelError(f"vLLM can't serve the base model in {folder}: {reason}") from err


def lora_request(number: int, folder: Path) -> LoRARequest:
    """How vLLM is told of the adapter in `folder`."""
    # vLLM's cache of prefixes tells adapters apart by their names: no two have the same, ever.
    return LoRARequest(lora_name=str(number), lora_int_id=number, lora_path=str(folder))


def sampling_params(request: Request, ends: frozenset[int], room: int) -> SamplingParams:
    """How vLLM is to answer `request`.

    Args:
        request: what was asked.
        ends: tokens that end every answer of this model.
        room: tokens that the context has beside the prompt.
    """
    sampling = request.sampling
    return SamplingParams(
        # vLLM generates one at least; where only the prompt is scored, it is not shown.
        max_tokens=max(1, min(sampling.max_tokens, room)),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        # Python takes any int as a seed, torch only 64 bits.
        seed=None if sampling.seed is None else sampling.seed % 2**63,
        stop_token_ids=sorted(ends | sampling.stop_token_ids),
        ignore_eos=True,
        logprobs=sampling.logprobs,
        prompt_logprobs=(sampling.logprobs or 0) if request.prompt_logprobs else None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def read_tokens(output: Any, wanted: int | None) -> list[tuple[int, ScoredToken | None]]:
    """The tokens of a vLLM output, scored where that is wanted."""
    ids: list[int] = list(output.token_ids)
    if wanted is None:
        return [(token, None) for token in ids]
    pairs = zip(ids, output.logprobs, strict=True)
    return [(token, read_score(token, found, wanted)) for token, found in pairs]


def read_score(token: int, found: dict[int, Any] | None, wanted: int) -> ScoredToken:
    """What vLLM says of a place: the likeliest tokens and the one that stands there, by rank."""
    if found is None:
        return ScoredToken(token, None)
    best = sorted(found.items(), key=lambda item: -item[1].logprob)[:wanted]
    return ScoredToken(
        token, found[token].logprob, tuple((other, score.logprob) for other, score in best)
    )
