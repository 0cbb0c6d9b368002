"""Running the service: an address, a database and a policy to begin with."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import uvicorn

from rlmix.errors import ConfigError, MissingError, PolicyError
from rlmix.policy.artifact import DOCUMENT, TENSORS, folder_of, load
from rlmix.service.app import LOCAL_HOSTS, create_app
from rlmix.service.guard import Tokens, check_address, is_loopback
from rlmix.service.records import Alias
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.engine import Durability
from rlmix.service.storage.opening import open_storage

DEFAULT_NAME = "default"
"""Of the project, the policy and the alias that clients ask for unless they say otherwise."""

_CONCURRENT = 512
_KEEP_ALIVE_SECONDS = 75
_GRACE_SECONDS = 10


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the service runs.

    Attributes:
        host: address; others than loopback need tokens.
        port: 0 for one that is free.
        db: address of the database.
        durability: what is stored outlives the end of the process, and with "full" the loss of power.
        tokens: who may ask; none for everybody.
        open_to_all: whether an address that others reach may do without tokens.

    Raises:
        ConfigError: an address that others reach, without tokens.
    """

    host: str = "127.0.0.1"
    port: int = 8490
    db: str = "sqlite:///rlmix.db"
    durability: Durability = "normal"
    tokens: Tokens = field(default_factory=Tokens)
    open_to_all: bool = False

    def __post_init__(self) -> None:
        """Check the address."""
        check_address(self.host, self.tokens, open_to_all=self.open_to_all)


def serve(settings: Settings, policy: Path | None, ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it.

    Args:
        settings: how.
        policy: a policy directory that runs get unless they ask for another; None leaves it as it is.
        ready: told the address, once requests are answered.

    Raises:
        ConfigError: the address cannot be used.
        PolicyError: the policy is damaged.
        StorageError: the database is in use, damaged or of another version.
    """
    with _bound(settings) as listening, contextlib.closing(open_storage(settings.db, settings.durability)) as storage:
        storage.create_project(DEFAULT_NAME)
        if policy is not None:
            publish(storage, policy)
        hosts = LOCAL_HOSTS if is_loopback(settings.host) else ("*",)
        config = uvicorn.Config(
            create_app(storage, tokens=settings.tokens, hosts=hosts),
            access_log=False,
            log_level="warning",
            limit_concurrency=_CONCURRENT,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            server_header=False,
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        # The socket listens already: whoever comes now waits until the first request is answered.
        ready(f"http://{host}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])


def publish(
    storage: AbstractStorage,
    folder: Path,
    *,
    project: str = DEFAULT_NAME,
    policy: str = DEFAULT_NAME,
    alias: str = DEFAULT_NAME,
) -> Alias:
    """Add a policy directory as a version, unless it is one already, and let an alias lead to it.

    Raises:
        ConflictError: somebody else sets the alias at the same time.
        PolicyError: the directory is missing or damaged.
    """
    source = folder_of(str(folder))
    load(source)
    try:
        document, tensors = (storage.put_blob((source / name).read_bytes())[0] for name in (DOCUMENT, TENSORS))
    except OSError as error:
        raise PolicyError(f"`{source}` cannot be read ({error}).") from error
    version, _ = storage.add_version(project, policy, document, tensors)
    try:
        found = storage.alias(project, policy, alias)
    except MissingError:
        return storage.set_alias(project, policy, alias, version.number, 0)
    if found.version == version:
        return found
    return storage.set_alias(project, policy, alias, version.number, found.revision)


@contextlib.contextmanager
def _bound(settings: Settings) -> Iterator[socket.socket]:
    """Yield a socket that listens."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
            listening.listen(_CONCURRENT)
        except OSError as error:
            raise ConfigError(f"{settings.host}:{settings.port} cannot be served ({error.strerror}).") from error
        yield listening
