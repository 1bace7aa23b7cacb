"""Make a small base model out of the docstrings of Python's standard library, once.

    python examples/quickstart/base_model.py --output DIR

The quickstart must work where no model hub can be reached, so it brings its own base model: a
Llama of a few million parameters with a byte-level BPE tokenizer and a chat template, pre-trained
for about a minute on two cores. It knows what documentation sounds like and little else, which is
what a base model is for here. The same seed on the same machine makes the same bytes.
May import peftjob.errors.
"""

import argparse
import ast
import json
import platform
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from peftjob.errors import ConflictError, run_main

RECIPE_FILE = "recipe.json"
"""Beside the weights: what the folder was made of. Another recipe makes the model anew."""

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# Every turn ends with EOS, so a model trained on it knows when to stop. The generation markers
# tell transformers and TRL which tokens are the assistant's.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}"
    "{{- '<|assistant|>' }}"
    "{%- generation %}{{- message.content + eos_token }}{%- endgeneration %}"
    "{%- else %}"
    "{{- '<|' + message.role + '|>' + message.content + eos_token }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

ProgressCallback = Callable[[int, int, float], None]
"""Takes the steps done, the steps in all, and the step's loss in nats per token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Size and pre-training of the base model."""

    seed: int = 0
    vocab_size: int = 4096
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 3
    steps: int = 400
    """Fixed, not a time limit: a limit would make another model on a busy machine."""
    batch_size: int = 16
    block_tokens: int = 128
    muon_learning_rate: float = 0.02
    """For the matrices of the blocks, by Muon: in the few hundred steps there are it gets to a
    loss 0.7 nats lower than AdamW alone."""
    adamw_learning_rate: float = 0.012
    """For the embeddings and norms, by AdamW."""
    warmup_steps: int = 30
    weight_decay: float = 0.05
    shards: int = 2
    """Parts of a batch, worked on side by side. Fixed as well, so that sums are added in the same
    order on any number of cores."""
    max_docstrings: int | None = None
    """Take the first so many docstrings; None takes all."""


def make_base_model(
    output: Path, *, recipe: Recipe = Recipe(), progress: ProgressCallback | None = None
) -> Path:
    """Make the base model in the folder `output`, in the Hugging Face format, and return it.

    Returns at once where `output` already holds the model of this recipe. Everything is written to
    a folder beside it, which then takes its name, so a killed run leaves no half model.

    Raises:
        ConflictError: `output` holds something that this function has not made.
    """
    made_of = _describe(recipe)
    if (output / RECIPE_FILE).exists():
        if (output / RECIPE_FILE).read_text(encoding="utf-8") == made_of:
            return output
    elif output.exists() and any(output.iterdir()):
        raise ConflictError(
            f"{output} holds files that are no base model of the quickstart; "
            "name another folder, or empty it"
        )
    beside = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)  # Of a run that was killed.
    beside.mkdir(parents=True)
    try:
        texts = read_docstrings(Path(sysconfig.get_paths()["stdlib"]))[: recipe.max_docstrings]
        tokenizer = train_tokenizer(texts, recipe)
        model = pretrain(texts, tokenizer, recipe, progress=progress)
        tokenizer.save_pretrained(beside)
        with _no_bars():
            model.save_pretrained(beside)
        for path in beside.iterdir():
            path.chmod(0o644)  # safetensors writes 0600, which a container's user can't read.
        (beside / RECIPE_FILE).write_text(made_of, encoding="utf-8")
        shutil.rmtree(output, ignore_errors=True)
        beside.rename(output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return output


def _describe(recipe: Recipe) -> str:
    text = {"python": platform.python_version(), "torch": torch.__version__, **asdict(recipe)}
    return json.dumps(text, indent=2) + "\n"


def read_docstrings(folder: Path) -> list[str]:
    """Every docstring under `folder` once, in the order of the files."""
    # Installed packages differ from machine to machine; tests have few docstrings worth reading.
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    found: dict[str, None] = {}
    for path in sorted(folder.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(folder).parts):
            found.update(dict.fromkeys(_docstrings_of(path)))
    return list(found)


def _docstrings_of(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Old modules have invalid escapes; not ours to report.
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def train_tokenizer(texts: list[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `texts`, with the special tokens and the chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def pretrain(
    texts: list[str],
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    *,
    progress: ProgressCallback | None = None,
) -> LlamaForCausalLM:
    """Train a Llama from scratch on `texts`, packed into blocks of equal length.

    Each step's batch is shared out to threads of one core each. Torch's own threads meet several
    hundred times a step, and take many times as long as soon as anything else wants a core.
    """
    with (
        _reproducible(recipe.seed),
        ThreadPoolExecutor(recipe.shards, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        model = _new_model(tokenizer, recipe)
        weights = list(model.parameters())
        optimizers = _optimizers(model, recipe)
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_share_of_rate, recipe))
            for optimizer in optimizers
        ]

        def differentiate(batch: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
            """Loss and gradients of a (batch, length) part; `.grad`, which is shared, stays."""
            loss = model(input_ids=batch, labels=batch).loss
            return loss.item(), torch.autograd.grad(loss, weights)

        blocks = _pack(texts, tokenizer, recipe.block_tokens)
        for step, batch in enumerate(_batches(blocks, recipe), start=1):
            losses, gradients = zip(
                *pool.map(differentiate, batch.chunk(recipe.shards)), strict=True
            )
            for weight, parts in zip(weights, zip(*gradients, strict=True), strict=True):
                weight.grad = torch.stack(parts).mean(dim=0)
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            for optimizer in optimizers:
                optimizer.step()
            for schedule in schedules:
                schedule.step()
            if progress is not None:
                progress(step, recipe.steps, sum(losses) / len(losses))
    model.config.use_cache = True
    return model.eval()


def _new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=False,
        )
    )
    # For short blocks plain products are faster on a CPU than the fused attention's backward.
    model.set_attn_implementation("eager")
    return model.train()


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.parameters() if all(weight is not m for m in matrices)]
    return (
        torch.optim.Muon(matrices, lr=recipe.muon_learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(
            others,
            lr=recipe.adamw_learning_rate,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        ),
    )


def _share_of_rate(recipe: Recipe, step: int) -> float:
    """Of the full learning rate at `step`: up over the warm-up, then down to 0 in a line."""
    return min((step + 1) / recipe.warmup_steps, (recipe.steps - step) / recipe.steps)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Fix the random numbers and the threads inside, and leave the caller's as they were."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        # Weights stay float32; products are taken in bfloat16 by CPUs that have it, which is more
        # than twice as fast. Others go on in float32.
        torch.set_float32_matmul_precision("medium")
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar of its own through the caller's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _pack(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """All texts one after the other, each between BOS and EOS, as (blocks, length)."""
    ids: list[int] = []
    for encoding in tokenizer(texts, verbose=False)["input_ids"]:
        ids += [tokenizer.bos_token_id, *encoding, tokenizer.eos_token_id]
    blocks = len(ids) // length
    return torch.tensor(ids[: blocks * length]).view(blocks, length)


def _batches(blocks: torch.Tensor, recipe: Recipe) -> Iterator[torch.Tensor]:
    """As many batches (batch, length) as there are steps, in a new order every epoch."""
    order = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        while len(order) < recipe.batch_size:
            order = torch.cat([order, torch.randperm(len(blocks))])
        chosen, order = order[: recipe.batch_size], order[recipe.batch_size :]
        yield blocks[chosen]


def main() -> int:
    # Imported here: only the script draws a bar.
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    parser = argparse.ArgumentParser(description="Make the quickstart's base model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = Recipe(seed=args.seed)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
    )
    with Progress(*columns, TimeElapsedColumn()) as bar:
        task = bar.add_task("pre-training the base model", total=recipe.steps)

        def advance(step: int, total: int, loss: float) -> None:
            bar.update(
                task, completed=step, description=f"pre-training the base model, loss {loss:.2f}"
            )

        folder = make_base_model(args.output, recipe=recipe, progress=advance)
        bar.update(task, completed=recipe.steps)
    print(folder)
    return 0


if __name__ == "__main__":
    run_main(main, debug=False)
