"""How fast the trainer is, beside the stock Kubeflow trainer, KAITO's and TRL's.

Every contender trains the same random Llama (hidden 512, vocabulary 16k) with the same LoRA on the
same rows, all of them in one step, in a process of its own on one thread of a CPU; in turn, round
after round. A ratio is the median over the rounds of their CPU seconds over ours: above 1 is
faster. Seconds are of the training proper (no imports, no loading), after a short warm-up; peaks
are VmHWM of fresh processes, reset as the training begins. What each contender does is in
tests/bench/contenders.

    hack/bench train                         all of it: about 25 minutes
    hack/bench train --quick                 one round of a few rows, to see that it works
    hack/bench train --contenders ours,trl   some of it
    hack/bench train --gpu                   Llama-3-8B's shape on a GPU, ours beside TRL's packing

Prints tables and, as the last line, one JSON object; what was not measured is null.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from peftjob.terminal import table
from tests.bench.contenders import curves, gpu, start, suite, workers
from tests.bench.contenders.child import CONTENDERS
from tests.bench.contenders.process import Process
from tests.bench.contenders.suite import Inputs, Rounds
from tests.bench.contenders.workload import REFERENCE, WIDE, Shape, Work

STARTS = 3
PEAK_STEPS = 3
WORKER_STEPS = 4
WORKER_ROUNDS = 3

Report = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A run of the benchmark."""

    folder: Path
    inputs: Inputs
    contenders: Sequence[str]
    rounds: int
    console: Console

    def timings(self) -> Report:
        """Everyone, in turn."""
        rounds = suite.run(
            suite.entries(self.inputs, self.contenders),
            self.rounds,
            cache=self.folder / "cache",
            say=self.console.print,
        )
        self.console.print(_timing_table(rounds, self.inputs))
        ratios = {
            f"vs_{name}": rounds.ratio(name, "ours")
            for name in ("stock", "stock_bf16", "kaito", "trl", "trl_packing")
        }
        return {
            **ratios,
            "chat_vs_trl": rounds.ratio("chat_trl", "chat_ours"),
            "chat_vs_trl_packing": rounds.ratio("chat_trl_packing", "chat_ours"),
            "mfu": _mfu(rounds, "ours", self.inputs, REFERENCE),
            "mfu_hidden_1024": _mfu(rounds, "ours_hidden_1024", self.inputs, WIDE),
            "bf16_matmul_gflops": median(rounds.bf16_flops) / 1e9,
            "fp32_matmul_gflops": median(rounds.fp32_flops) / 1e9,
            "mflop_per_token": self.inputs.instructions.flops(REFERENCE)
            / self.inputs.instructions.tokens
            / 1e6,
        }

    def peaks(self) -> Report:
        """The memory of a job: processes that train nothing else, before or after.

        One that trains many models has a heap full of holes, and its peak says little.
        """
        names = ("trl_packing", "ours")
        found: dict[str, list[float]] = {name: [] for name in names}
        if not set(names) <= set(self.contenders):
            return {"peak_vs_trl_packing": None}
        for _ in range(self.rounds):
            for name in names:
                with Process(name, cache=self.folder / "cache") as process:
                    data = self.inputs.instructions
                    done = process.measure(self.inputs.model, data.path, steps=PEAK_STEPS)
                    found[name].append(done.peak_mb)
        rows = [(name, *(f"{peak:.0f}" for peak in peaks)) for name, peaks in found.items()]
        head = [f"round {i + 1}" for i in range(self.rounds)]
        self.console.print(table((f"peak MB of {PEAK_STEPS} steps", *head), rows))
        pairs = zip(found["ours"], found["trl_packing"], strict=True)
        return {
            "peak_vs_trl_packing": median(ours / theirs for ours, theirs in pairs),
            "peak_mb": median(found["ours"]),
        }

    def losses(self) -> Report:
        """The same curves?"""
        data = self.inputs.shorter
        made = curves.measure(self.inputs.model, data, self.contenders, cache=self.folder / "cache")
        rows = [(name, *(f"{loss:.4f}" for loss in losses)) for name, losses in made.items()]
        steps = [f"step {i + 1}" for i in range(curves.STEPS)]
        self.console.print(table((f"loss of {data.rows} rows", *steps), rows))
        return {
            "loss_difference_trl": curves.difference(made, "ours", "trl"),
            "loss_difference_trl_packing": curves.difference(made, "ours", "trl_packing"),
        }

    def starts(self) -> Report:
        """From the start of the process to the first step."""
        if "ours" not in self.contenders:
            return {"start_to_first_step_s": None, "start_phases_s": None}
        work = Work(
            model=self.inputs.model, rows=self.inputs.small.path, steps=1, output=self.folder
        )
        made = [
            start.measure(replace(work, output=self.folder / f"start-{i}"))
            for i in range(min(STARTS, self.rounds))
        ]
        middle = sorted(made, key=lambda one: one.total)[len(made) // 2]
        packages = start.imports(replace(work, output=self.folder / "start-imports"))
        rows = [(name, f"{seconds:.2f}") for name, seconds in middle.phases.items()]
        rows += [(f"  import {name}", f"{seconds:.2f}") for name, seconds in packages.items()]
        rows.append(("process start to first step", f"{middle.total:.2f}"))
        self.console.print(table(("start of a small job", "s"), rows))
        return {"start_to_first_step_s": middle.total, "start_phases_s": middle.phases}

    def workers(self) -> Report:
        """Two that are pinned to a core each against one."""
        cores = sorted(os.sched_getaffinity(0))[:2]
        if "ours" not in self.contenders or len(cores) < 2:
            return {"two_workers": None, "two_workers_loss_difference": None}
        ratios, differences = [], []
        for i in range(min(WORKER_ROUNDS, self.rounds)):
            one, two = (
                workers.measure(
                    Work(
                        model=self.inputs.model,
                        rows=self.inputs.instructions.path,
                        steps=WORKER_STEPS,
                        output=self.folder / f"workers-{i}-{count}",
                    ),
                    cores[:count],
                )
                for count in (1, 2)
            )
            ratios.append(two.tokens_per_s / one.tokens_per_s)
            pairs = zip(one.losses, two.losses, strict=True)
            differences.append(max(abs(a - b) for a, b in pairs))
            self.console.print(
                f"round {i + 1}: one worker {one.tokens_per_s:.0f} tokens/s, two "
                f"{two.tokens_per_s:.0f}, losses differ by at most {differences[-1]:.1e}"
            )
        return {
            "two_workers": median(ratios),
            "two_workers_loss_difference": max(differences),
        }


def _mfu(rounds: Rounds, name: str, inputs: Inputs, shape: Shape) -> float | None:
    return rounds.mfu(name, inputs.instructions.flops(shape))


def _timing_table(rounds: Rounds, inputs: Inputs) -> Any:
    rows = []
    for name, measurements in rounds.measurements.items():
        chat = name.startswith("chat_")
        data = inputs.chats if chat else inputs.instructions
        cpu_s = rounds.median(name, "cpu_s")
        if cpu_s is None:
            continue
        base = "chat_ours" if chat else "ours"
        ratio = None if name == "ours_hidden_1024" else rounds.ratio(name, base)
        rows.append(
            (
                name,
                f"{cpu_s:.2f}",
                f"{rounds.median(name, 'wall_s'):.2f}",
                "" if ratio is None else f"{ratio:.2f}",
                f"{data.tokens / cpu_s:.0f}",
                f"{measurements[-1].losses[-1]:.4f}",
            )
        )
    head = ("contender", "CPU s", "wall s", "ratio", "tokens/s", "loss")
    return table(head, rows)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a few rows")
    parser.add_argument(
        "--contenders",
        default=",".join(CONTENDERS),
        help=f"some of {', '.join(CONTENDERS)}",
    )
    parser.add_argument("--gpu", action="store_true", help="Llama-3-8B's shape on a GPU")
    arguments = parser.parse_args()
    arguments.contenders = arguments.contenders.split(",")
    unknown = [name for name in arguments.contenders if name not in CONTENDERS]
    if unknown or arguments.rounds < 1:
        parser.error(
            f"--contenders: {', '.join(unknown)} unknown; there are {', '.join(CONTENDERS)}"
            if unknown
            else f"--rounds: {arguments.rounds} is less than 1"
        )
    return arguments


def main() -> None:
    arguments = _arguments()
    rounds = 1 if arguments.quick else arguments.rounds
    console = Console()
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        folder = Path(name)
        if arguments.gpu:
            outcome = gpu.measure(folder, rounds, console)
        else:
            inputs = Inputs.write(folder, quick=arguments.quick)
            bench = Bench(folder, inputs, arguments.contenders, rounds, console)
            outcome = {
                **bench.timings(),
                **bench.peaks(),
                **bench.losses(),
                **bench.starts(),
                **bench.workers(),
            }
    print(json.dumps(_plain({**outcome, "rounds": rounds})))


if __name__ == "__main__":
    main()
