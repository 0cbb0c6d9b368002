"""The processes of one training (torch.distributed): what the first of them finds out, all of them go by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.distributed as dist

from rlmix.errors import InputError, RlmixError
from rlmix.policy.codec import AbstractCodec
from rlmix.policy.decision import Decision

_WELL = 1.0


def several() -> bool:
    """Say whether the default process group is there and has more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def leads() -> bool:
    """Say whether this process is the one that asks: the first, or the only one."""
    return not several() or dist.get_rank() == 0


def agreed(find: Callable[[], Sequence[float]], size: int) -> list[float]:
    """Return the numbers that `find` returns in the first process, which alone calls it.

    Every process must call this at the same place. An error of `find` is raised once all have heard of it, so that
    nobody waits for a process that has gone.

    Args:
        find: returns finite numbers that float64 holds.
        size: how many.

    Raises:
        RlmixError: `find` failed in the first process (which raises its own error).
    """
    if not several():
        return list(find())
    message = torch.zeros(1 + size, dtype=torch.float64)
    problem: Exception | None = None
    if leads():
        try:
            message[1:] = torch.tensor(list(find()), dtype=torch.float64)
            message[0] = _WELL
        except Exception as error:
            problem = error
    said, *numbers = _broadcast(message).tolist()
    if problem is not None:
        raise problem
    if said != _WELL:
        raise RlmixError("the first process of this training failed here, so all of them end. Its own error says why.")
    return numbers


def shared(find: Callable[[], Sequence[bytes]], count: int) -> list[bytes]:
    """Return the `count` texts that `find` returns in the first process; see `agreed`."""
    found: list[bytes] = []

    def lengths() -> list[float]:
        found.extend(find())
        return [len(part) for part in found]

    sizes = [int(length) for length in agreed(lengths, count)]
    if not several() or not any(sizes):
        return found or [b""] * count
    data = torch.zeros(sum(sizes), dtype=torch.uint8)
    if leads():
        data = torch.frombuffer(bytearray(b"".join(found)), dtype=torch.uint8)
    parts = torch.split(_broadcast(data), sizes)
    return [bytes(part.numpy()) for part in parts]


def decided(
    codec: AbstractCodec, number: int, choose: Callable[[], tuple[int, Decision, bool]]
) -> tuple[int, Decision, bool]:
    """Return the entry, the Decision and a mark that `choose` returns in the first process.

    One message of 6 numbers and the codec's action; every process decodes it with its own codec.

    Args:
        codec: what the policy's choices mean.
        number: of the decision.
        choose: the mark may be anything that all have to know.

    Raises:
        InputError: the processes are not at the same decision, or have different policies.
        RlmixError: `choose` failed in the first process (which raises its own error).
    """
    # 48 bits, which float64 holds.
    own = (float(number), float(int(codec.digest[:12], 16)))

    def numbers() -> list[float]:
        entry, decision, mark = choose()
        action = cast(Sequence[float], codec.encode(decision)) if codec.shape else ()
        return [*own, entry, mark, *action]

    first, digest, entry, mark, *action = agreed(numbers, 4 + (math.prod(codec.shape) if codec.shape else 0))
    if (first, digest) != own:
        raise InputError(
            "the processes of this training are not at the same decision of the same policy. Give all of them the same "
            "policy and total_steps, and call the mixer equally often."
        )
    given = [int(part) if codec.whole else part for part in action]
    decision = codec.decode(given) if codec.shape else codec.catalogue.decisions[int(entry)]
    return int(entry), decision, bool(mark)


def _broadcast(message: torch.Tensor) -> torch.Tensor:
    """Return the first process's tensor, on the CPU."""
    # NCCL knows no tensors on the CPU.
    message = message.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(message, 0)
    return message.cpu()
