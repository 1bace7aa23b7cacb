"""A toy base model and datasets, made by code; and the launcher run as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from peftjob.local.ports import free_port

ROOT = Path(__file__).parents[2]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["red", "blue", "green", "seven", "eight", "nine", "north", "south", "east", "west"]


def make_tokenizer(chat_template: str | None = CHATML, **config: Any) -> Any:
    """A byte-level BPE tokenizer of a few hundred tokens; its pad token is its EOS."""
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    text = [f"What is the word for {word}? The word is {word}." for word in WORDS]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
        **config,
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random Llama of two layers, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def chats(count: int) -> list[dict[str, Any]]:
    """Rows of different lengths."""
    return [
        chat(f"What is {WORDS[i % 10]}?" * (1 + i % 3), f"The word is {WORDS[i * 7 % 10]}.")
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def chat_rows() -> list[dict[str, Any]]:
    """Of them, so many that an epoch has an incomplete last step."""
    return chats(37)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Workspace:
    """A job's folders on disk, and the launcher to run on them."""

    root: Path
    model_dir: Path
    training: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.root / "output"

    def spec_json(self) -> str:
        training = {
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "learning_rate": 5e-3,
            "logging_steps": 2,
            **self.training,
        }
        spec = {
            "name": "toy",
            "base_model": {"source": "hf://org/toy-llama", "revision": "main"},
            "dataset": {"source": "file:///data", **self.dataset},
            "method": {"r": 4, "lora_alpha": 8},
            "training": training,
            **self.spec,
        }
        return json.dumps(spec)

    def write(self, name: str, rows: list[Any]) -> None:
        write_jsonl(self.root / "workspace/dataset" / name, rows)

    def env(self, **env: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "PEFTJOB_"))}
        return {
            **clean,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PEFTJOB_SPEC": self.spec_json(),
            "PEFTJOB_WORKSPACE": str(self.root / "workspace"),
            "PEFTJOB_OUTPUT": str(self.output),
            "PEFTJOB_TERMINATION_LOG": str(self.root / "termination-log"),
            **env,
        }

    def start(self, *args: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "llm_trainer", *args],
            env=self.env(**env),
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """One replica, to its end."""
        process = self.start(*args, **env)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start_nodes(self, nodes: int, nproc: int = 1) -> "list[subprocess.Popen[str]]":
        """Replicas that meet on loopback as the operator's environment tells them to."""
        world: Mapping[str, str] = {
            "PET_NNODES": str(nodes),
            "PET_NPROC_PER_NODE": str(nproc),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(free_port()),
            # As the operator has them: RANK is the pod's, WORLD_SIZE the processes'.
            "WORLD_SIZE": str(nodes * nproc),
        }
        return [
            self.start(
                **world,
                PET_NODE_RANK=str(node),
                RANK=str(node),
                PEFTJOB_OUTPUT=str(self.output if node == 0 else self.root / "none"),
                PEFTJOB_TERMINATION_LOG=str(self.root / f"termination-log-{node}"),
            )
            for node in range(nodes)
        ]

    def run_nodes(self, nodes: int, nproc: int = 1) -> "list[subprocess.CompletedProcess[str]]":
        """The same, to their ends."""
        done = []
        for process in self.start_nodes(nodes, nproc):
            out, err = process.communicate(timeout=600)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return done


@pytest.fixture(scope="session")
def make_workspace(model_dir: Path) -> Callable[[Path], Workspace]:
    """Workspaces with the toy model and no dataset yet."""

    def make(root: Path) -> Workspace:
        (root / "workspace/dataset").mkdir(parents=True)
        (root / "workspace/model").symlink_to(model_dir)
        (root / "output").mkdir()
        return Workspace(root, model_dir)

    return make


@pytest.fixture
def workspace(tmp_path: Path, make_workspace: Callable[[Path], Workspace]) -> Workspace:
    """One of them."""
    return make_workspace(tmp_path)


MakeTokenizer = Callable[..., Any]


@pytest.fixture(name="make_tokenizer", scope="session")
def make_tokenizer_fixture() -> MakeTokenizer:
    """Another tokenizer, with another chat template."""
    return make_tokenizer


@pytest.fixture(name="free_port", scope="session")
def free_port_fixture() -> Callable[[], int]:
    """A port that nothing listens on."""
    return free_port
