"""Running the service: an address, a database and a policy to begin with."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import uvicorn

from rlmix.errors import ConfigError, MissingError, PolicyError
from rlmix.policy.artifact import DOCUMENT, TENSORS, folder_of, load
from rlmix.service.app import CONCURRENT, LOCAL_HOSTS, RATE, create_app
from rlmix.service.guard import Tokens, check_address, is_loopback
from rlmix.service.records import Alias
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.engine import Durability
from rlmix.service.storage.opening import open_storage

DEFAULT_NAME = "default"
"""Of the project, the policy and the alias that clients ask for unless they say otherwise."""

_CONNECTIONS = 8 * CONCURRENT
_KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 10
"""How long requests that are under way may take when the service is ended."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the service runs.

    Attributes:
        host: address; others than loopback need tokens.
        port: 0 for one that is free.
        db: address of the database.
        durability: what is stored outlives the end of the process, and with "full" the loss of power.
        tokens: of a file, which open everything; those of the database count as well.
        open_to_all: whether an address that others reach may do without tokens.
        hosts: names that the service may be called by, beside those of this machine on a loopback address; empty on
            another address for any.
        rate: requests a second of each token; 0 for no limit.
    """

    host: str = "127.0.0.1"
    port: int = 8490
    db: str = "sqlite:///rlmix.db"
    durability: Durability = "normal"
    tokens: Tokens = field(default_factory=Tokens)
    open_to_all: bool = False
    hosts: tuple[str, ...] = ()
    rate: float = RATE

    @property
    def called(self) -> tuple[str, ...]:
        """The names that requests may call the service by."""
        return (*LOCAL_HOSTS, *self.hosts) if self.hosts or is_loopback(self.host) else ("*",)


def serve(settings: Settings, policy: Path | None, ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it.

    Args:
        settings: how.
        policy: a policy directory that runs get unless they ask for another; None leaves it as it is.
        ready: told the address, once requests are answered.

    Raises:
        ConfigError: the address cannot be used, or others reach it and there is no token.
        PolicyError: the policy is damaged.
        StorageError: the database is in use, damaged or of another version.
    """
    with _bound(settings) as listening, contextlib.closing(open_storage(settings.db, settings.durability)) as storage:
        check_address(
            settings.host, guarded=bool(settings.tokens or storage.tokens()), open_to_all=settings.open_to_all
        )
        storage.create_project(DEFAULT_NAME)
        if policy is not None:
            publish(storage, policy)
        config = uvicorn.Config(
            create_app(storage, tokens=settings.tokens, hosts=settings.called, rate=settings.rate),
            access_log=False,
            log_level="warning",
            # Connections that wait for their next request count here; the application counts what is under way.
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
            # Nothing here goes by where a request comes from.
            proxy_headers=False,
        )
        # What is there now stays: to look through it for garbage again and again would hold up requests each time.
        gc.collect()
        gc.freeze()
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
    # asyncio sends small answers at once only where the protocol is named; else each would wait 40 ms for the client's
    # acknowledgement of its first half.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
            listening.listen(_CONNECTIONS)
        except OSError as error:
            raise ConfigError(f"{settings.host}:{settings.port} cannot be served ({error.strerror}).") from error
        yield listening
