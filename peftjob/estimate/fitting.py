"""How a job is best run within a device's memory: micro-batches, checkpointing, sharding. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from peftjob.architecture import Architecture
from peftjob.errors import OutOfMemoryError
from peftjob.estimate.activations import Batch
from peftjob.estimate.devices import GIB, GPUS, Device
from peftjob.estimate.memory import Memory, Setting, peak_memory
from peftjob.method import Lora, Method, PrefixTuning, PromptTuning, QLora
from peftjob.training import Training

BEST_TOKENS = {"cpu": 1024, "cuda": 16384}
"""More at once make nothing faster, and take more memory."""
ENOUGH_TOKENS = {"cpu": 512, "cuda": 2048}
"""Fewer at once leave the device idle for longer than computing activations again would take."""
SHORTEST_ROW = 128
"""Tokens; a shorter training.max_length is nothing to propose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What has to fit, and on how many processes."""

    architecture: Architecture
    method: Method
    training: Training
    device: Device
    width: int
    """Bytes of a number of the dtype that is computed in."""
    processes: int
    longest: int
    """Tokens of the longest row."""
    share: float = 1.0
    """Of the tokens, those that are trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a job is run."""

    micro_batch_tokens: int
    gradient_checkpointing: bool
    parallel: str
    """ddp or fsdp."""
    memory: Memory
    """Of each process, at most."""


def choose(job: Job) -> Choice:
    """The fastest way that fits, as far as the job leaves it open.

    Raises:
        OutOfMemoryError: not even one row fits; the message says what would.
    """
    found = _fitting(job)
    if found is None:
        raise OutOfMemoryError(_refusal(job))
    return found


def _fitting(job: Job) -> Choice | None:
    least = _least_tokens(job)
    enough = max(least, min(_most_tokens(job), ENOUGH_TOKENS[job.device.kind]))
    for parallel in _parallels(job):
        for tokens in dict.fromkeys((enough, least)):
            for checkpointing in _checkpointings(job.training):
                choice = _choice(job, tokens, parallel, checkpointing=checkpointing)
                if _fits(choice, job.device):
                    return _enlarged(job, choice)
    return None


def _parallels(job: Job) -> Iterator[str]:
    asked = job.training.parallel
    if asked in ("auto", "ddp"):
        yield "ddp"
    # On a CPU several processes of a machine would share out what they could map once.
    if asked == "fsdp" or (asked == "auto" and job.processes > 1 and job.device.kind == "cuda"):
        yield "fsdp"


def _checkpointings(training: Training) -> tuple[bool, ...]:
    asked = training.gradient_checkpointing
    return (False, True) if asked is None else (asked,)


def _least_tokens(job: Job) -> int:
    """A row goes whole, however long."""
    return max(job.longest, job.training.micro_batch_tokens or 0)


def _most_tokens(job: Job) -> int:
    """What a process can be given at once, and what it is worth giving it."""
    if job.training.micro_batch_tokens is not None:
        return _least_tokens(job)
    most = BEST_TOKENS[job.device.kind]
    if job.training.tokens_per_step is None:
        # Who sets a batch size and accumulates over several means the first to be the limit.
        most = min(most, job.training.per_device_train_batch_size * job.longest)
    return max(job.longest, most)


def _enlarged(job: Job, choice: Choice) -> Choice:
    """With as many tokens at once as fit and are of use, by powers of two from the least.

    The steps are coarse so that a job that comes back on another node of about the same memory
    computes what it would have computed.
    """
    most = _most_tokens(job)
    while choice.micro_batch_tokens < most:
        larger = _choice(
            job,
            min(most, 2 * choice.micro_batch_tokens),
            choice.parallel,
            checkpointing=choice.gradient_checkpointing,
        )
        if not _fits(larger, job.device):
            break
        choice = larger
    return choice


def _choice(job: Job, tokens: int, parallel: str, *, checkpointing: bool) -> Choice:
    setting = Setting(
        kind=job.device.kind,
        width=job.width,
        optim=job.training.optim,
        checkpointing=checkpointing,
        shards=job.processes if parallel == "fsdp" else 1,
        processes=job.processes,
    )
    virtual = (
        job.method.num_virtual_tokens if isinstance(job.method, PromptTuning | PrefixTuning) else 0
    )
    rows = -(-tokens // job.longest)
    batch = Batch(
        tokens=tokens + rows * virtual,
        longest=job.longest + virtual,
        targets=int(job.share * tokens),
    )
    return Choice(
        micro_batch_tokens=tokens,
        gradient_checkpointing=checkpointing,
        parallel=parallel,
        memory=peak_memory(job.architecture, job.method, batch, setting),
    )


def _fits(choice: Choice, device: Device) -> bool:
    return device.memory_bytes is None or choice.memory.total <= device.memory_bytes


def smallest(job: Job) -> Choice:
    """The way that needs the least memory, as far as the job leaves it open."""
    tokens = _least_tokens(job)
    choices = (
        _choice(job, tokens, parallel, checkpointing=checkpointing)
        for parallel in _parallels(job)
        for checkpointing in _checkpointings(job.training)
    )
    return min(choices, key=lambda choice: choice.memory.total)


def _refusal(job: Job) -> str:
    least = smallest(job)
    how = [f"{_least_tokens(job)} tokens at once"]
    how += ["gradient checkpointing"] if least.gradient_checkpointing else []
    how += [f"the weights shared out among {job.processes}"] if least.parallel == "fsdp" else []
    return (
        f"the job needs {_gib(least)} on each process (base model {job.architecture.model_type}, "
        f"method {job.method.type}, {', '.join(how)}), more than the {job.device}; what would fit: "
        + ("; ".join(_remedies(job)) or "a smaller base model")
    )


def _remedies(job: Job) -> Iterator[str]:
    training = job.training
    if training.gradient_checkpointing is False:
        other = _with(job, gradient_checkpointing=None)
        if _fitting(other):
            yield f"training.gradient_checkpointing true ({_gib(smallest(other))})"
    if training.micro_batch_tokens is not None and training.micro_batch_tokens > job.longest:
        other = _with(job, micro_batch_tokens=None)
        found = _fitting(other)
        if found:
            yield f"training.micro_batch_tokens {found.micro_batch_tokens} ({_gib(found)})"
    length = _longest_that_fits(job)
    if length is not None:
        yield f"training.max_length {length}"
    if type(job.method) is Lora:
        quantised = replace(
            job, method=QLora.model_validate({**job.method.model_dump(), "type": "qlora"})
        )
        if _fitting(quantised):
            yield f"method qlora ({_gib(smallest(quantised))})"
    for processes in (2, 4, 8, 16):
        shared = replace(_with(job, parallel="fsdp"), processes=processes)
        if job.device.kind == "cuda" and processes > job.processes and _fitting(shared):
            yield f"{processes} GPUs with training.parallel fsdp ({_gib(smallest(shared))} each)"
            break
    yield from _larger_device(job)


def _larger_device(job: Job) -> Iterator[str]:
    if job.device.kind == "cpu":
        needed = -(-smallest(job).memory.total // GIB)
        yield f"resources.limits.memory {needed}Gi for each process of a replica"
        return
    for gpu in GPUS.values():
        width = 2 if gpu.bfloat16 and job.training.dtype != "float32" else 4
        if _fitting(replace(job, device=gpu, width=width)):
            yield f"a GPU as large as {gpu}"
            return


def _longest_that_fits(job: Job) -> int | None:
    """The longest rows, in steps of 64 tokens."""
    low, high = 0, (job.longest - 1) // 64
    without = _with(job, micro_batch_tokens=None)
    while low < high:
        middle = (low + high + 1) // 2
        if _fitting(replace(without, longest=64 * middle)):
            low = middle
        else:
            high = middle - 1
    return 64 * low if 64 * low >= SHORTEST_ROW else None


def _with(job: Job, **training: object) -> Job:
    return replace(job, training=job.training.model_copy(update=training))


def _gib(choice: Choice) -> str:
    return f"{choice.memory.total / GIB:.1f} GiB"
