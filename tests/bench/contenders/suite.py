"""What is measured: which contender trains which rows, in turn, round after round."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from peftjob import architecture
from peftjob.estimate import flops
from peftjob.method import Lora
from tests.bench.contenders import machine, stock, workload
from tests.bench.contenders.huggingface import ALPHA, PROJECTIONS, RANK
from tests.bench.contenders.measure import Measurement
from tests.bench.contenders.process import Process
from tests.bench.contenders.workload import Row, Shape

WIDE_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contender on rows."""

    name: str
    contender: str
    model: Path
    rows: Path
    counts: float = 1.0
    """By how much its seconds are multiplied, where it trains a part of the rows only."""
    rounds: int | None = None
    """None: in all."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows in a file, and what they come to."""

    path: Path
    rows: int
    tokens: int
    targets: int
    lengths: tuple[int, ...]

    @classmethod
    def write(cls, path: Path, rows: Sequence[Row]) -> "Data":
        """Write the rows."""
        sizes = workload.sizes(rows, workload.tokenizer())
        return cls(
            path=workload.write_rows(path, rows),
            rows=len(rows),
            tokens=sum(tokens for tokens, _ in sizes),
            targets=sum(targets for _, targets in sizes),
            lengths=tuple(tokens for tokens, _ in sizes),
        )

    def flops(self, shape: Shape, *, vocabulary: int = workload.VOCABULARY) -> float:
        """Model FLOPs of training them once."""
        config = workload.configuration(shape, vocabulary=vocabulary).to_dict()
        method = Lora(r=RANK, lora_alpha=ALPHA, target_modules=PROJECTIONS)
        return flops(architecture.read(config), method, self.tokens, self.targets, self.lengths)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that is trained, on disk."""

    model: Path
    wide: Path
    instructions: Data
    first_batch: Data
    """As many of the instructions as the stock trainer takes at once."""
    chats: Data
    shorter: Data
    """The instructions without the few that are most of what padding costs."""
    small: Data
    """Eight short instructions."""

    @classmethod
    def write(cls, folder: Path, *, quick: bool) -> "Inputs":
        """Make them; a few rows of each if `quick`."""
        rows = workload.instructions(12, 900, 470) if quick else workload.instructions()
        chats = workload.chats(6, 900) if quick else workload.chats()
        by_length = sorted(rows, key=lambda row: len(row["prompt"] + row["completion"]))
        return cls(
            model=workload.write_model(folder / "model", workload.REFERENCE),
            wide=workload.write_model(folder / "wide", workload.WIDE),
            instructions=Data.write(folder / "instructions.jsonl", rows),
            first_batch=Data.write(folder / "first-batch.jsonl", rows[: stock.BATCH]),
            chats=Data.write(folder / "chats.jsonl", chats),
            shorter=Data.write(folder / "shorter.jsonl", by_length[: len(rows) * 5 // 6]),
            small=Data.write(folder / "small.jsonl", by_length[:8]),
        )


def entries(inputs: Inputs, contenders: Sequence[str]) -> list[Entry]:
    """Those of the contenders in the order in which a round takes them.

    The stock trainer's batches are all of the same size, since every row is padded to the same
    length: one of them is timed, and counts as often as there are batches.
    """
    made = [
        Entry(
            name=name,
            contender=name,
            model=inputs.model,
            rows=inputs.first_batch.path,
            counts=inputs.instructions.rows / inputs.first_batch.rows,
        )
        for name in ("stock", "stock_bf16")
    ]
    made += [
        Entry(name=name, contender=name, model=inputs.model, rows=inputs.instructions.path)
        for name in ("kaito", "trl", "trl_packing", "ours")
    ]
    made += [
        Entry(name=f"chat_{name}", contender=name, model=inputs.model, rows=inputs.chats.path)
        for name in ("trl", "trl_packing", "ours")
    ]
    made.append(
        Entry(
            name="ours_hidden_1024",
            contender="ours",
            model=inputs.wide,
            rows=inputs.instructions.path,
            rounds=WIDE_ROUNDS,
        )
    )
    return [entry for entry in made if entry.contender in contenders]


@dataclass(frozen=True)
class Rounds:
    """What was measured."""

    measurements: dict[str, list[Measurement]]
    """By the entry's name, one a round, seconds as if it had trained all rows."""
    bf16_flops: list[float]
    """Of the machine's matmul, a second, measured before each round."""
    fp32_flops: list[float]

    def median(self, name: str, field: str) -> float | None:
        """Of cpu_s or wall_s; None where the entry was not measured."""
        found = self.measurements.get(name)
        return median(getattr(m, field) for m in found) if found else None

    def ratio(self, name: str, base: str) -> float | None:
        """The median of the rounds' ratios of CPU time."""
        pairs = zip(self.measurements.get(name, []), self.measurements.get(base, []), strict=False)
        ratios = [one.cpu_s / other.cpu_s for one, other in pairs]
        return median(ratios) if ratios else None

    def mfu(self, name: str, flops_done: float) -> float | None:
        """Model FLOPs over what the machine's matmul would have done in the CPU time."""
        found = self.measurements.get(name)
        if not found:
            return None
        pairs = zip(found, self.bf16_flops, strict=False)
        return median(flops_done / m.cpu_s / peak for m, peak in pairs)


def run(
    entries: Sequence[Entry], rounds: int, *, cache: Path, say: Callable[[str], None]
) -> Rounds:
    """Measure every entry once a round, each contender in a process of its own."""
    torch.set_num_threads(1)
    made = Rounds({entry.name: [] for entry in entries}, [], [])
    processes: dict[str, Process] = {}
    with ExitStack() as stack:
        for number in range(rounds):
            made.bf16_flops.append(machine.matmul_flops(torch.bfloat16))
            made.fp32_flops.append(machine.matmul_flops(torch.float32))
            for entry in entries:
                if entry.rounds is not None and number >= entry.rounds:
                    continue
                if entry.contender not in processes:
                    # Not before: its imports would disturb another's measurement.
                    process = Process(entry.contender, cache=cache)
                    processes[entry.contender] = stack.enter_context(process)
                done = processes[entry.contender].measure(entry.model, entry.rows, steps=1)
                scaled = done.times(entry.counts)
                made.measurements[entry.name].append(scaled)
                say(
                    f"round {number + 1} {entry.name}: {scaled.cpu_s:.2f} CPU s, "
                    f"loss {done.losses[-1]:.4f}"
                )
    return made
