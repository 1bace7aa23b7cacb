"""A tiny random model with a chat template, two random adapters, and the server on them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from peftjob.local.ports import free_port

REPOSITORY = Path(__file__).parents[2]
READY_S = 300

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|eos|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
CORPUS = [
    "the deployment controller keeps replicas of a pod running on every node it may use",
    "a persistent volume claim asks for storage of a class with an access mode",
    "what is the field of a job that limits how long it may run before it is ended",
] * 4


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ascii_only = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:!?-'", "Ġ"]
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=SPECIAL, initial_alphabet=ascii_only, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[2:],
    )
    fast.chat_template = TEMPLATE
    return fast


@dataclass(frozen=True)
class World:
    """What the tests share: folders, and the reference answers of transformers and PEFT."""

    base: Path
    adapters: dict[str, Path]
    tokenizer: Any
    models: dict[str | None, Any] = field(repr=False)

    def prompt_ids(self, question: str) -> list[int]:
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def generate(self, ids: Sequence[int], name: str | None, max_tokens: int) -> list[int]:
        """Greedy tokens of the reference, without the one that ends the answer."""
        ends = [self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("<|end|>")]
        with torch.inference_mode():
            out = self.models[name].generate(
                torch.tensor([list(ids)]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = out[0, len(ids) :].tolist()
        return new[:-1] if new and new[-1] in ends else new

    def answer(self, question: str, name: str | None, max_tokens: int) -> str:
        """The reference's greedy answer to a question."""
        return self.tokenizer.decode(
            self.generate(self.prompt_ids(question), name, max_tokens), skip_special_tokens=True
        )

    def logprobs(self, ids: Sequence[int], name: str | None) -> list[float]:
        """The reference's log-probability of each token after the first."""
        with torch.inference_mode():
            logits = self.models[name](torch.tensor([list(ids)])).logits[0, :-1].float()
        picked = torch.log_softmax(logits, -1).gather(-1, torch.tensor(list(ids[1:]))[:, None])
        return picked[:, 0].tolist()


def save_adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """A random LoRA adapter whose B is not zero, large enough to change answers."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    base = folder / "base"
    tokenizer = make_tokenizer()
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapters = {
        "small": save_adapter(
            base, folder / "small", 1, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]
        ),
        "large": save_adapter(
            base,
            folder / "large",
            2,
            r=16,
            lora_alpha=16,
            use_rslora=True,
            target_modules="all-linear",
            alpha_pattern={"down_proj": 4},
            rank_pattern={"layers.1.self_attn.q_proj": 2},
        ),
    }
    models: dict[str | None, Any] = {
        None: AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    }
    for name, path in adapters.items():
        fresh = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        models[name] = PeftModel.from_pretrained(fresh, path).eval()
    return World(base, adapters, tokenizer, models)


@dataclass
class Server:
    """A running server and what it has logged."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str]
    reader: threading.Thread
    before_ready: set[int | None] = field(default_factory=set)
    """What the readiness probe got until it got 200; None where nothing answered."""

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/openai/v1", api_key="none", max_retries=0, **options)

    def status(self, path: str) -> int | None:
        """The status that GET gets; None where nothing answers."""
        try:
            return httpx.get(self.url + path, timeout=60).status_code
        except httpx.ConnectError:
            return None

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while (status := self.status("/v2/health/ready")) != 200:
            self.before_ready.add(status)
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.05)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
            self.reader.join(timeout=60)


@contextmanager
def running_server(*args: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "kserve_runtime", "--http_port", str(port), *args],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        with process.stderr:
            lines.extend(iter(process.stderr.readline, ""))

    reader = threading.Thread(target=read)
    reader.start()
    server = Server(process, f"http://127.0.0.1:{port}", lines, reader)
    try:
        yield server
    finally:
        if process.poll() is None:
            server.stop()
        reader.join(timeout=60)


@pytest.fixture(scope="session")
def server(world: World) -> Iterator[Server]:
    """One server for all tests that don't end it: the base model "tiny" and its adapters."""
    args = ["--model_name", "tiny", "--model_dir", str(world.base), "--max_new_tokens_limit", "200"]
    for name, path in world.adapters.items():
        args += ["--adapter", f"{name}={path.as_uri()}"]
    with running_server(*args) as started:
        started.wait_until_ready()
        yield started


@pytest.fixture(scope="session")
def client(server: Server) -> OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def start_server() -> Callable[..., AbstractContextManager[Server]]:
    """A context manager: the server with these arguments, stopped at its end."""
    return running_server


@pytest.fixture(scope="session")
def make_adapter(world: World) -> Callable[..., Path]:
    """make_adapter(folder, base=…, **LoraConfig): a random adapter."""

    def make(folder: Path, base: Path | None = None, **config: Any) -> Path:
        return save_adapter(base or world.base, folder, seed=3, **config)

    return make


@pytest.fixture(scope="session")
def endless(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with a long context and no token that ends a completion."""
    folder = tmp_path_factory.mktemp("endless") / "base"
    shutil.copytree(world.base, folder)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        config.update(eos_token_id=None)
        if name == "config.json":
            config.update(max_position_embeddings=1_000_000)
        (folder / name).write_text(json.dumps(config))
    return folder
