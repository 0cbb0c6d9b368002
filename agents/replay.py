"""Open loop: agents that repeat what was chosen before, whatever they see; two ablations, and the proof of a record.

Replayed on another replicate, a policy's choices show whether it uses what it observes: a policy that does loses by
it. Chosen at random with the frequencies that the policy had, they show whether their order matters. Replayed on the
replicate that they were recorded on, they must give the recorded scores again.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from rlmix._files import write_text
from rlmix.agents.agent import AbstractAgent, Feedback, first_allowed
from rlmix.agents.jobs import Job, Progress, Split
from rlmix.agents.ledger import Record, machine, short
from rlmix.agents.report import Run
from rlmix.agents.runner import Block, Kept, Venue
from rlmix.errors import CheckpointError, InputError
from rlmix.ops import rng
from rlmix.policy.codec import Catalogue, codec_of

_SCHEMA = "rlmix.trace/1"
# What the random numbers of a static mixture are for.
_ENTRY = 135
# On another machine a training ends elsewhere: one rounding grows until only the distribution is the same.
TOLERANCE = 0.05
# The variant under which agents see no validation images.
BLIND = "no-validation"


@final
class TraceAgent(AbstractAgent):
    """Repeats a sequence of entries in each training, and begins again with the next one.

    Args:
        trace: entries of the catalogue, one a decision.

    Raises:
        InputError: `trace` is empty or has an entry below 0.
    """

    def __init__(self, trace: Sequence[int]) -> None:
        self.trace = tuple(int(entry) for entry in trace)
        if not self.trace or min(self.trace) < 0:
            raise InputError(f"`trace` must be one or more entries of a catalogue, each at least 0, got {self.trace}.")
        self._decision = 0

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the next entry for each row, int64 [N]; where it is masked, the first allowed one.

        Raises:
            InputError: the training has more decisions than the trace.
        """
        if self._decision >= len(self.trace):
            raise InputError(
                f"the trace has {len(self.trace)} decisions, the training more. Replay it on the instance and horizon "
                "that it was recorded on."
            )
        entry = self.trace[self._decision]
        chosen = torch.full((len(observations),), entry, dtype=torch.int64, device=observations.device)
        return first_allowed(chosen, mask)

    def observe(self, feedback: Feedback) -> None:
        """Go on to the next entry."""
        self._decision = 0 if feedback.done else self._decision + 1

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace as JSON."""
        write_text(path, json.dumps({"schema": _SCHEMA, "trace": list(self.trace)}) + "\n")


def frequencies(traces: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return how often each entry was chosen, as shares that sum to 1.

    Args:
        traces: names of entries, one a decision, of one or more trainings.

    Raises:
        InputError: nothing was chosen.
    """
    chosen = list(itertools.chain.from_iterable(traces))
    if not chosen:
        raise InputError("`traces` must hold one or more choices: the frequencies of nothing are not defined.")
    return {entry: chosen.count(entry) / len(chosen) for entry in dict.fromkeys(chosen)}


def static_trace(shares: Mapping[str, float], horizon: int, key: int) -> tuple[str, ...]:
    """Return the choices of a static mixture: each decision draws an entry, without regard to anything that happens.

    Args:
        shares: how probable each entry is; they sum to 1.
        horizon: decisions in a training.
        key: of the draws, in [0, 2**63); a training of the same key as another draws the same.

    Raises:
        InputError: shares that are no distribution.
    """
    if min(shares.values(), default=-1.0) < 0 or abs(sum(shares.values()) - 1.0) > 1e-6:
        raise InputError(f"`shares` must be at least 0 and sum to 1, got {dict(shares)}.")
    limits = list(itertools.accumulate(shares.values()))
    names = list(shares)
    chosen = []
    for decision in range(horizon):
        number = rng.host_uniform(rng.derive(key, decision), _ENTRY)
        # Rounding may leave the last limit a little below 1.
        chosen.append(names[min(sum(number >= limit for limit in limits), len(names) - 1)])
    return tuple(chosen)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A recorded run that did not come out again.

    Attributes:
        row: line of the file, the header being line 1.
        record: what was recorded.
        run: what the replay gave.
        allowed: how far accuracy and score may be from the record: 0 on a machine like that of the record.
        chosen: what the policy chooses now, where that is not what was recorded; else None.
    """

    row: int
    record: Record
    run: Run
    allowed: float
    chosen: tuple[str, ...] | None


def replay(
    records: Sequence[Record],
    catalogue: Catalogue,
    *,
    policy: tuple[str, AbstractAgent] | None = None,
    tolerance: float = TOLERANCE,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> list[Mismatch]:
    """Train recorded runs again, with the choices of the record, and return those that come out differently.

    Blocks are trained as they were recorded. On the same kind of processor with the same version of torch and number
    of threads, accuracy and score must be equal to the last bit; elsewhere they may differ by `tolerance`.

    Args:
        records: the runs of one file, in its order.
        catalogue: what the recorded choices are entries of.
        policy: digest of an agent, and the agent: it must choose again what its own rows say, seeing what it saw then.
        tolerance: for records of another machine.
        data_dir: folder of data sets that have to lie on disk.
        device: where to train.
        progress: called with the number of finished trainings and that of all.

    Raises:
        CheckpointError: runs of another catalogue, or a damaged instance.
        DataError: images are missing.
    """
    blocks: dict[int, list[int]] = {}
    for place, record in enumerate(records):
        if record.catalogue != short(catalogue.digest):
            raise CheckpointError(
                f"line {place + 2} has the catalogue {record.catalogue}, given is {short(catalogue.digest)}. Give the "
                "policy whose catalogue was used."
            )
        blocks.setdefault(record.block, []).append(place)
    kept = Kept()
    found: list[Mismatch] = []
    done = 0
    for places in blocks.values():
        block = [records[place] for place in places]
        venue = Venue(
            horizon=len(block[0].run.actions),
            codec=codec_of(catalogue),
            with_validation=block[0].variant != BLIND,
            data_dir=None if data_dir is None else os.fspath(data_dir),
            device=str(device),
        )
        runs, chosen = _replayed(block, kept, venue, policy)
        for place, record, run, now in zip(places, block, runs, chosen, strict=True):
            allowed = 0.0 if record.machine == machine(device) else tolerance
            off = max(abs(run.accuracy - record.run.accuracy), abs(run.score - record.run.score))
            other = None if now == record.run.actions else now
            # Written so that a score that is not a number is a mismatch.
            if not off <= allowed or other is not None:
                found.append(Mismatch(row=place + 2, record=record, run=run, allowed=allowed, chosen=other))
        done += len(block)
        if progress is not None:
            progress(done, len(records))
    return found


def _replayed(
    block: Sequence[Record], kept: Kept, venue: Venue, policy: tuple[str, AbstractAgent] | None
) -> tuple[list[Run], list[tuple[str, ...]]]:
    """Return the runs of a block, and what the policy would have chosen (the record, where it was not the policy)."""
    agents, jobs, catalogue = {}, [], venue.codec.catalogue
    for number, record in enumerate(block):
        own = policy is not None and policy[0] == record.digest
        trace = [catalogue.index(entry) for entry in record.run.actions]
        agents[str(number)] = _Witness(trace, copy.deepcopy(policy[1]) if own and policy is not None else None)
        jobs.append(Job(record.instance, record.run.replicate, str(number), record.key))
    split: Split = "reward" if block[0].split == "reward" else "test"
    runs = kept.run(Block(venue=venue, agents=agents, jobs=jobs, split=split))
    chosen = [tuple(catalogue.names[entry] for entry in agents[str(number)].chosen) for number in range(len(block))]
    return runs, chosen


@final
class _Witness(AbstractAgent):
    """Repeats a trace, and notes what another agent would have chosen instead."""

    def __init__(self, trace: Sequence[int], other: AbstractAgent | None) -> None:
        self._trace, self._other = TraceAgent(trace), other
        self.chosen: list[int] = []

    def act(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        entries = self._trace.act(observations, mask)
        seen = entries if self._other is None else self._other.act(observations, mask)
        self.chosen.extend(seen.tolist())
        return entries

    def observe(self, feedback: Feedback) -> None:
        self._trace.observe(feedback)
        if self._other is not None:
            self._other.observe(feedback)

    def save(self, path: str | os.PathLike[str]) -> None:
        self._trace.save(path)
