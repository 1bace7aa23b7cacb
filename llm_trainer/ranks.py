"""The processes of a job as one: joined, agreeing on errors, ending together.

Two ways by which an error on one rank becomes the same error on all:
- `together`: around a step that runs on every rank (reading data, loading the model). All ranks
  wait for each other at its end, and if any failed, all raise the lowest rank's error.
- `explain`: amid training, through the alarm.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from llm_trainer.alarm import Alarm
from llm_trainer.failures import Failure, describe, lost_contact
from peftjob.errors import RetryableError

JOIN_TIMEOUT = timedelta(minutes=30)
"""For replicas that are still pulling images or waiting for a node."""


class StopTogetherError(Exception):
    """An error that every rank raises with the same content; `failure` is what to show."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.line)
        self.failure = failure


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the job's processes."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    alarm: Alarm | None = None
    """None in a job of one process."""
    control: Any = None
    """A gloo group for small messages; None in a job of one process."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a step on every rank; if one fails, all raise that rank's error.

        What makes a collective call inside of it calls `agree` before: a rank that has failed is
        not there any more.

        Raises:
            StopTogetherError: with the lowest failing rank's error.
        """
        error: Failure | None = None
        cause: Exception | None = None
        try:
            yield
        except StopTogetherError:
            raise  # By `agree`: all have it.
        except Exception as err:
            error, cause = describe(err), err
        errors: list[Failure | None] = [error]
        if self.control is not None:
            errors = [None] * self.world_size
            dist.all_gather_object(errors, error, group=self.control)
        first = next((e for e in errors if e is not None), None)
        if first is not None:
            raise StopTogetherError(first) from cause

    def agree(self) -> None:
        """Go on together, or raise what has failed on any rank in the step at hand.

        Raises:
            StopTogetherError: as `together`, whose exchange this is.
        """
        with self.together():
            pass

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all ranks, in double precision."""
        if self.control is None:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.control)
        result: list[float] = tensor.tolist()
        return result

    def gather(self, texts: list[str]) -> list[str]:
        """The texts of all ranks, in the order of the ranks."""
        if self.control is None:
            return texts
        lists: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(lists, texts, group=self.control)
        return [text for part in lists for text in part]

    def share(self, value: Any) -> Any:
        """Rank 0's value on every rank: plain data and tensors on the CPU."""
        if self.control is None:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0, group=self.control)
        return holder[0]

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Make the tensors, on the rank's device, what they are on rank 0."""
        if self.control is not None:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def explain(self, err: Exception) -> Failure:
        """Why this rank can't go on: its own error, told to the others, or another rank's."""
        if self.alarm is not None and _broken_collective(err):
            return self.alarm.heard() or lost_contact(self.rank, str(err))
        failure = describe(err)
        if self.alarm is not None:
            self.alarm.ring(failure)
        return failure


def _broken_collective(err: Exception) -> bool:
    """Whether `err` says that a peer is gone. gloo raises a bare RuntimeError for it."""
    if isinstance(err, dist.DistError):
        return True
    text = str(err)
    return isinstance(err, RuntimeError) and any(
        mark in text for mark in ("gloo", "NCCL", "Connection closed by peer", "Connection reset")
    )


def _store_client(world_size: int, attempt: str) -> Store:
    client = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=False,
        wait_for_workers=False,
        timeout=JOIN_TIMEOUT,
    )
    # torchrun's store outlives its workers, and with it what they have left there.
    return PrefixStore(f"peftjob/{attempt}", client)


def join() -> Ranks:
    """Meet the other ranks as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say.

    Raises:
        RetryableError: they can't be met.
    """
    env = os.environ
    rank, world_size = int(env.get("RANK", 0)), int(env.get("WORLD_SIZE", 1))
    local_rank = int(env.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world_size == 1:
        return Ranks(rank=0, world_size=1, local_rank=0, device=device)
    _name_interface()
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=JOIN_TIMEOUT)
        control = dist.new_group(backend="gloo") if cuda else dist.group.WORLD
        attempt = [os.urandom(8).hex()]
        dist.broadcast_object_list(attempt, src=0, group=control)
        alarm = Alarm(lambda: _store_client(world_size, attempt[0]), rank, world_size)
    except (dist.DistError, RuntimeError, ValueError) as err:
        where = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}"
        text = " ".join(str(err).split())[:300]
        raise RetryableError(
            f"rank {rank} of {world_size} can't meet the others at {where}: {text}"
        ) from err
    return Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=device,
        alarm=alarm,
        control=control,
    )


def _name_interface() -> None:
    """Tell gloo to use loopback where the job meets there: the host name may lead elsewhere."""
    if os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1", "::1"):
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
        if loopback is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
