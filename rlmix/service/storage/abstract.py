"""What a storage promises; `rlmix.testing.StorageContract` says it in code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from rlmix.service.records import (
    Alias,
    DecisionRecord,
    Ended,
    Feedback,
    Learner,
    Origin,
    Phase,
    PolicyVersion,
    Run,
    RunState,
    Spec,
    Token,
)

PAGE = 500
"""The most rows that one call returns."""


class AbstractStorage(ABC):
    """Keeps projects, policies, runs, decisions and feedback.

    A call that returns has stored what it says: neither the end of the process nor a second call can take it back.
    Every write is on a name that the caller chose, so repeating one is harmless: it returns what is stored, and False.
    A write of something else under a name that is taken raises ConflictError and changes nothing. Calls may come from
    several threads. Names are checked by the callers.

    Every method raises StorageError where the database cannot answer, and MissingError where a project, policy, run,
    version, alias, decision or blob that it names is not there.
    """

    @abstractmethod
    def create_project(self, project: str) -> bool:
        """Make a project; say whether it is new."""

    @abstractmethod
    def projects(self) -> tuple[str, ...]:
        """Return the names of all projects, sorted."""

    @abstractmethod
    def put_blob(self, data: bytes) -> tuple[str, bool]:
        """Keep bytes under their SHA-256; return it, and whether they are new."""

    @abstractmethod
    def blob(self, digest: str) -> bytes:
        """Return the bytes that have this SHA-256."""

    @abstractmethod
    def add_version(self, project: str, policy: str, document: str, tensors: str) -> tuple[PolicyVersion, bool]:
        """Add a version of a policy, which is made if need be; the same document gives the same version.

        Args:
            project: name.
            policy: name.
            document: SHA-256 of a blob that is there.
            tensors: SHA-256 of a blob that is there.
        """

    @abstractmethod
    def version(self, project: str, policy: str, number: int) -> PolicyVersion:
        """Return a version."""

    @abstractmethod
    def versions(self, project: str, policy: str, after: int, limit: int) -> Sequence[PolicyVersion]:
        """Return up to `limit` versions with numbers above `after`, ascending."""

    @abstractmethod
    def set_alias(self, project: str, policy: str, alias: str, number: int, revision: int) -> Alias:
        """Let an alias lead to a version, if it was set `revision` times before (0: never).

        Raises:
            ConflictError: somebody else has set it since.
        """

    @abstractmethod
    def alias(self, project: str, policy: str, alias: str) -> Alias:
        """Return where an alias leads."""

    @abstractmethod
    def create_run(
        self, project: str, run: str, policy: str, alias: str, spec: Spec, document: str | None = None
    ) -> tuple[Run, bool]:
        """Begin a run, pinned to the version of a document, or to the one that the alias leads to now.

        Args:
            project: whose run.
            run: its name.
            policy: that decides.
            alias: by which the policy was found.
            spec: what the training is.
            document: SHA-256 of the policy that the training has already. The alias may have moved since it looked.
                What is said of a run that is there changes nothing.

        Raises:
            MissingError: no version of the policy has this document.
            ConflictError: there is a run of this name with another policy, alias or spec.
        """

    @abstractmethod
    def run(self, project: str, run: str) -> Run:
        """Return a run."""

    @abstractmethod
    def runs(self, project: str, after: str, limit: int) -> Sequence[Run]:
        """Return up to `limit` runs whose names come after `after`, by name."""

    @abstractmethod
    def newest_runs(self, project: str, limit: int) -> Sequence[Run]:
        """Return up to `limit` runs, the last that began first."""

    @abstractmethod
    def claim_run(self, project: str, run: str) -> Run:
        """Go on with a run: whoever did so before may not write any more.

        Raises:
            ConflictError: it has ended.
        """

    @abstractmethod
    def end_run(self, project: str, run: str, state: RunState, attempt: int) -> Run:
        """End a run, if it goes on. Decisions that were taken before, and feedback, may still arrive.

        Raises:
            ConflictError: it has ended in another state.
            FencedError: it was claimed since.
        """

    @abstractmethod
    def put_decision(self, project: str, run: str, record: DecisionRecord) -> tuple[DecisionRecord, bool]:
        """Store a decision; return the one that is stored from now on, and whether it is this one.

        The first decision of the origin "server" wins over later ones, whatever they answer. One of another origin
        was carried out by the client already, so it must be what is stored.

        Raises:
            ConflictError: this number is stored with another question; a decision of the client differs from what is
                stored; or the service is asked in a run that has ended.
            FencedError: the run was claimed since.
        """

    @abstractmethod
    def decision(self, project: str, run: str, seq: int) -> DecisionRecord:
        """Return a decision."""

    @abstractmethod
    def decisions(self, project: str, run: str, after: int, limit: int) -> Sequence[DecisionRecord]:
        """Return up to `limit` decisions with numbers above `after`, ascending."""

    @abstractmethod
    def put_feedback(self, project: str, run: str, feedback: Feedback, attempt: int) -> tuple[Feedback, bool]:
        """Store what came of a decision that is stored; `received` may differ on repetition.

        Raises:
            ConflictError: other values are stored.
            FencedError: the decision is one of another attempt.
        """

    @abstractmethod
    def feedback(self, project: str, run: str, seq: int) -> Feedback:
        """Return what came of a decision."""

    @abstractmethod
    def feedbacks(self, project: str, run: str, after: int, limit: int) -> Sequence[Feedback]:
        """Return what came of up to `limit` decisions with numbers above `after`, ascending."""

    @abstractmethod
    def origins(self, project: str, names: Sequence[str]) -> Mapping[str, Mapping[Origin, int]]:
        """Return for each of the named runs how many of its decisions came from where."""

    @abstractmethod
    def policies(self, project: str) -> tuple[str, ...]:
        """Return the names of all policies of a project, sorted."""

    @abstractmethod
    def aliases(self, project: str, policy: str) -> tuple[Alias, ...]:
        """Return all aliases of a policy, by name."""

    @abstractmethod
    def ended(self, project: str, policy: str, after: int, limit: int) -> Sequence[Ended]:
        """Return up to `limit` runs of a policy with cursors above `after`, in the order in which they ended.

        No run appears later with a lower cursor than one that was returned.
        """

    @abstractmethod
    def acquire(self, lease: str, holder: str, seconds: float) -> int | None:
        """Take a lease, or keep it for longer; None where somebody else has it.

        Args:
            lease: its name.
            holder: who takes it, unique to a process.
            seconds: for how long, unless it is renewed.

        Returns:
            Its fence, which is higher whenever it passes to somebody else.
        """

    @abstractmethod
    def release(self, lease: str, holder: str) -> None:
        """Let go of a lease, if `holder` has it."""

    @abstractmethod
    def learner(self, project: str, policy: str) -> Learner:
        """Return where learning has come to."""

    @abstractmethod
    def save_learner(self, project: str, policy: str, state: Learner, *, lease: str, fence: int) -> None:
        """Store where learning has come to.

        Raises:
            FencedError: the lease has passed to somebody else.
        """

    @abstractmethod
    def create_token(self, token: Token, digest: str) -> None:
        """Store a token, by the SHA-256 of what its owner sends.

        Raises:
            ConflictError: there is one of this name.
        """

    @abstractmethod
    def tokens(self) -> tuple[Token, ...]:
        """Return all tokens, by name."""

    @abstractmethod
    def token(self, digest: str) -> Token | None:
        """Return the token that has this SHA-256, whatever its state."""

    @abstractmethod
    def revoke_token(self, name: str) -> Token:
        """Close a token for good; a second time changes nothing."""

    @abstractmethod
    def census(self, now: int, since: int) -> Mapping[Phase, int]:
        """Return how many runs there are in which phase, in all projects; see `Run.phase` for the arguments."""

    @abstractmethod
    def quick(self) -> bool:
        """Say whether a small write would be over sooner than a thread could be woken for it.

        A hint for whoever must not be kept waiting, such as an event loop: a write may take its time all the same.
        """

    @abstractmethod
    def waiting(self) -> int:
        """Return how many writes wait for their turn in this process."""

    @abstractmethod
    def check(self) -> None:
        """Prove that something can be written."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was begun, and let go of the database. A second call does nothing."""
