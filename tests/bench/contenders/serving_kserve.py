"""KServe's way: the Hugging Face runtime without vLLM, with PEFT's adapters.

One `generate` at a time, in a thread, under a lock; the adapter is switched before it. On the same
HTTP stack as ours: FastAPI on uvicorn.

    python -m tests.bench.contenders.serving_kserve --model DIR --dtype D --port N NAME=DIR ...
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from peft import PeftModel
from transformers import AsyncTextIteratorStreamer, AutoModelForCausalLM, AutoTokenizer


class OneAtATime:
    """The model, its adapters, and the lock."""

    def __init__(self, base: Path, adapters: dict[str, Path], dtype: torch.dtype) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        (first, folder), *others = adapters.items()
        model = PeftModel.from_pretrained(model, folder, adapter_name=first)
        for name, other in others:
            model.load_adapter(other, name)
        self._model: Any = model.eval()
        self._lock = asyncio.Lock()

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The events of a completion."""
        inputs = self._tokenizer(body["prompt"], return_tensors="pt")
        async with self._lock:
            self._model.set_adapter(body["model"])
            streamer = AsyncTextIteratorStreamer(
                self._tokenizer, skip_prompt=True, skip_special_tokens=True
            )
            running = asyncio.create_task(
                asyncio.to_thread(self._generate, inputs, streamer, body["max_tokens"])
            )
            async for text in streamer:
                if text:
                    yield _event(choices=[{"index": 0, "text": text}])
            tokens = await running
        yield _event(choices=[], usage={"completion_tokens": tokens})
        yield b"data: [DONE]\n\n"

    def _generate(self, inputs: Any, streamer: Any, max_tokens: int) -> int:
        with torch.inference_mode():
            out = self._model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=streamer,
            )
        return int(out.shape[1] - inputs["input_ids"].shape[1])


def _event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("adapters", nargs="+", metavar="NAME=DIR")
    args = parser.parse_args()
    pairs = (text.partition("=") for text in args.adapters)
    adapters = {name: Path(folder) for name, _, folder in pairs}
    served = OneAtATime(args.model, adapters, getattr(torch, args.dtype))
    app = FastAPI()

    async def complete(request: Request) -> StreamingResponse:
        events = served.answer(await request.json())
        return StreamingResponse(events, media_type="text/event-stream")

    async def healthy() -> dict[str, str]:
        return {}

    app.add_api_route("/v1/completions", complete, methods=["POST"])
    app.add_api_route("/health", healthy, methods=["GET"])
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
