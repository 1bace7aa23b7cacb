"""What every contender trains: a random Llama, a tokenizer, rows. Made here, the same each time.

The lengths are heavy-tailed, as instruction data is: many short rows, a few near the limit. The
sums are those of the reference's measurements: 7,431 tokens of prompt/completion rows, 3,917 of
them targets; 11,667 tokens of chats. One word is one token, so that text of any length in tokens
can be written down.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

VOCABULARY = 16_384
MAX_LENGTH = 1024
START, END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|unknown|>"
ROLES = ("system", "user", "assistant")
MESSAGE_TOKENS = 5
"""Of a message beside its words: start, role, line break, end, line break."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "<|im_start|>assistant\n"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvwyz" for vowel in "aeiou"]

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama's."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int


REFERENCE = Shape(hidden=512, intermediate=1408, layers=6, heads=8, kv_heads=2)
"""98 MFLOP a token on the reference's rows."""
WIDE = Shape(hidden=1024, intermediate=2816, layers=6, heads=16, kv_heads=4)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A training to do: every step takes all rows, so that batches are the same for everyone."""

    model: Path
    """A folder with weights, configuration and tokenizer."""
    rows: Path
    """A JSON Lines file."""
    steps: int
    output: Path
    max_length: int = MAX_LENGTH
    bits: int = 16
    """Of the base weights: 4 is QLoRA."""
    gpu: bool = False

    def read(self) -> list[Row]:
        """The rows."""
        return [json.loads(line) for line in self.rows.read_text().splitlines()]


def instructions(count: int = 48, tokens: int = 7431, targets: int = 3917) -> list[Row]:
    """Rows of prompt and completion; a completion's EOS is one of its targets."""
    rng = random.Random(1)
    lengths = heavy_tailed(count, tokens, rng)
    shares = [length * rng.uniform(0.25, 0.8) for length in lengths]
    trained = spread(shares, targets, low=2, high=[length - 2 for length in lengths])
    return [
        {"prompt": _text(length - completion, rng), "completion": _text(completion - 1, rng)}
        for length, completion in zip(lengths, trained, strict=True)
    ]


def chats(count: int = 40, tokens: int = 11_667) -> list[Row]:
    """Conversations of one to six exchanges, some with a system prompt."""
    rng = random.Random(2)
    return [{"messages": _chat(n, rng)} for n in heavy_tailed(count, tokens, rng, low=40)]


def texts(count: int, tokens: int, max_length: int) -> list[Row]:
    """Rows of plain text, every token of which is a target."""
    rng = random.Random(3)
    lengths = heavy_tailed(count, tokens, rng, high=max_length)
    return [{"text": _text(length - 1, rng)} for length in lengths]


def _chat(tokens: int, rng: random.Random) -> list[dict[str, str]]:
    exchanges = min(rng.randint(1, 6), tokens // 32)
    roles = ["system"] * (tokens > 100 and rng.random() < 0.4) + ["user", "assistant"] * exchanges
    # An assistant says more than a user asks.
    weights = [rng.uniform(1, 3) * (1 + (role == "assistant")) for role in roles]
    words = spread(weights, tokens - MESSAGE_TOKENS * len(roles), low=1, high=[tokens] * len(roles))
    return [
        {"role": role, "content": _text(count, rng)}
        for role, count in zip(roles, words, strict=True)
    ]


def heavy_tailed(
    count: int, total: int, rng: random.Random, *, low: int = 12, high: int = MAX_LENGTH
) -> list[int]:
    """Lengths that sum to `total`: quantiles of a log-normal, cut at `high`, shuffled."""
    normal = NormalDist(sigma=1.1)
    weights = [math.exp(normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    rng.shuffle(weights)
    return spread(weights, total, low=low, high=[high] * count)


def spread(weights: Sequence[float], total: int, *, low: int, high: Sequence[int]) -> list[int]:
    """Whole numbers about in proportion to `weights`, within the bounds, that sum to `total`."""

    def at(scale: float) -> list[int]:
        pairs = zip(weights, high, strict=True)
        return [max(low, min(top, int(weight * scale))) for weight, top in pairs]

    below, above = 0.0, float(total) / min(weights)
    for _ in range(80):
        middle = (below + above) / 2
        below, above = (middle, above) if sum(at(middle)) <= total else (below, middle)
    numbers = at(below)
    for i, top in enumerate(high):
        if sum(numbers) < total and numbers[i] < top:
            numbers[i] += 1
    if sum(numbers) != total:
        raise ValueError(
            f"{total} can't be spread over {len(weights)} numbers from {low} to {high}"
        )
    return numbers


def _text(words: int, rng: random.Random) -> str:
    return "".join(f" {word(rng.randrange(_WORDS))}" for _ in range(words))


_WORDS = VOCABULARY - len((START, END, UNKNOWN, "\n", *ROLES))


def word(number: int) -> str:
    """A word of three syllables, a different one for each number."""
    base = len(SYLLABLES)
    return "".join(SYLLABLES[number // base**place % base] for place in range(3))


def tokenizer(max_length: int = MAX_LENGTH) -> Any:
    """One token a word, the blank before it included. No pad token, as many models have none."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [END, START, UNKNOWN]
    pieces = [*special, "\n", *ROLES, *(f" {word(i)}" for i in range(_WORDS))]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+|\n"), behavior="isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
    )


def write_model(folder: Path, shape: Shape) -> Path:
    """A model folder in the Hugging Face format: float32 weights drawn by a seed, a tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(configuration(shape)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def configuration(
    shape: Shape, *, vocabulary: int = VOCABULARY, positions: int = MAX_LENGTH
) -> Any:
    """The LlamaConfig of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
    )


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sizes(rows: Sequence[Row], made: Any) -> list[tuple[int, int]]:
    """Tokens of each row, and how many of them are targets, by a tokenizer of this module."""
    return [_size(row, made) for row in rows]


def _size(row: Row, made: Any) -> tuple[int, int]:
    if "messages" in row:
        encoded = made.apply_chat_template(
            row["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        return len(encoded["input_ids"]), sum(encoded["assistant_masks"])
    if "text" in row:
        tokens = len(made(row["text"])["input_ids"]) + 1
        return tokens, tokens - 1
    trained = len(made(row["completion"])["input_ids"]) + 1
    return len(made(row["prompt"])["input_ids"]) + trained, trained
