"""Requests that end in time, whatever the other side does: refuses, hangs, drips or floods."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from rlmix.errors import ConfigError, ServiceError
from rlmix.ops import rng

_RETRIED = frozenset({429, 502, 503})
_JITTER_SECONDS = 0.05


@final
@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the status, the body, and after how many seconds to ask again (0 where nothing was said)."""

    status: int
    body: bytes
    retry_after: float

    @property
    def parsed(self) -> Mapping[str, Any]:
        """The JSON object in the body; empty if there is none."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def kind(self) -> str:
        """The kind of a problem (RFC 9457), or nothing of replies that are none."""
        return str(self.parsed.get("title", ""))

    @property
    def text(self) -> str:
        """The beginning of the body, to read."""
        return self.body[:300].decode("utf-8", "replace")


class AbstractTransport(ABC):
    """Carries requests to a service and replies back. Calls come from one thread at a time."""

    @abstractmethod
    def call(self, method: str, path: str, body: bytes | None, *, seconds: float, limit: int) -> Reply:
        """Return the reply to a request that may be repeated without harm.

        Args:
            method: of HTTP.
            path: after the address.
            body: JSON, or None.
            seconds: after which no answer is one, the lookup of the name and everything else included.
            limit: the most bytes of a reply.

        Raises:
            ServiceError: no reply in time, or one too large.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the service; the next call begins anew."""


@final
class Transport(AbstractTransport):
    """Speaks to one service over HTTP. Calls come from one thread at a time; one connection is kept between them.

    Args:
        url: `http://HOST:PORT` or `https://HOST:PORT`, perhaps with a path in front of all others.
        token: sent with every request, or None.

    Raises:
        ConfigError: another kind of address, or a token that would cross a network in the clear.
    """

    def __init__(self, url: str, token: str | None) -> None:
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        known = parts.scheme in ("http", "https") and parts.hostname and port != -1
        if not known or parts.query or parts.fragment or parts.username:
            raise ConfigError(f"`{url}` is no address of a service. Give http://HOST:PORT or https://HOST:PORT.")
        self._host, self._port, self._secure = str(parts.hostname), port, parts.scheme == "https"
        if token is not None and not self._secure and not _is_loopback(self._host):
            raise ConfigError(f"a token would cross the network readably on the way to `{url}`. Use https://.")
        self._prefix = parts.path.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._kept: http.client.HTTPConnection | None = None
        self._process = os.getpid()

    def call(self, method: str, path: str, body: bytes | None, *, seconds: float, limit: int) -> Reply:
        """Return the reply to a request; if the first attempt fails early, it is made once more."""
        end = time.monotonic() + seconds
        try:
            reply = self._once(method, path, body, end, limit)
        except _InTimeError:
            if not self._paused(0.0, end):
                raise
            return self._once(method, path, body, end, limit)
        if reply.status in _RETRIED and self._paused(reply.retry_after, end):
            return self._once(method, path, body, end, limit)
        return reply

    def close(self) -> None:
        """Let go of the connection; the next call makes a new one."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    @staticmethod
    def _paused(seconds: float, end: float) -> bool:
        """Wait a little, and say whether time is left."""
        jitter = _JITTER_SECONDS * rng.host_uniform(time.monotonic_ns(), 0)
        if time.monotonic() + seconds + 2 * jitter >= end:
            return False
        time.sleep(seconds + jitter)
        return True

    def _once(self, method: str, path: str, body: bytes | None, end: float, limit: int) -> Reply:
        if self._process != os.getpid():
            # A connection that a parent process uses as well would mix up the answers.
            self._kept, self._process = None, os.getpid()
        kept, self._kept = self._kept, None
        exchange = _Exchange(self, kept, (method, self._prefix + path, body), limit, end)
        # In a thread of its own, since neither a name's lookup nor a reply that drips can be given a time limit.
        threading.Thread(target=exchange.run, name="rlmix-request", daemon=True).start()
        if not exchange.done.wait(max(0.0, end - time.monotonic())):
            exchange.abandon()
            raise ServiceError("the service did not answer in time.")
        if exchange.error is not None:
            kind = ServiceError if time.monotonic() >= end else _InTimeError
            raise kind(f"the service cannot be reached ({exchange.error}).") from exchange.error
        if exchange.reply is None:
            raise ServiceError(f"the service answers with more than {limit} bytes.")
        self._kept = exchange.connection
        return exchange.reply

    def connect(self, seconds: float) -> http.client.HTTPConnection:
        """Return a new connection, whose every step takes at most `seconds`."""
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=seconds, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=seconds)

    @property
    def headers(self) -> dict[str, str]:
        """What every request says."""
        return self._headers | {"Content-Type": "application/json", "Accept": "application/json"}


class _InTimeError(ServiceError):
    """A failure that leaves time for another attempt."""


@final
class _Exchange:
    """One request and its reply, in a thread of its own."""

    def __init__(
        self,
        transport: Transport,
        kept: http.client.HTTPConnection | None,
        request: tuple[str, str, bytes | None],
        limit: int,
        end: float,
    ) -> None:
        self._transport, self._request, self._limit, self._end = transport, request, limit, end
        self.connection = kept
        self.done = threading.Event()
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self._abandoned = False

    def run(self) -> None:
        """Speak, at once on a new connection if the kept one turns out to be dead."""
        try:
            if self.connection is not None:
                try:
                    self.reply = self._spoken(self.connection)
                    return
                except (OSError, http.client.HTTPException):
                    self.connection.close()
            self.connection = self._transport.connect(max(0.001, self._end - time.monotonic()))
            self.reply = self._spoken(self.connection)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.error = error
        finally:
            if self.reply is None:
                self._dropped()
            self.done.set()
            # Each side says first that it is through and looks then whether the other one is: one of them sees it.
            if self._abandoned:
                self._dropped()

    def abandon(self) -> None:
        """Let the thread end soon: nobody waits for it any more."""
        self._abandoned = True
        # The thread may wait in the socket; closing the file would not wake it, this does.
        held = self.connection
        if held is not None and held.sock is not None:
            with contextlib.suppress(OSError):
                held.sock.shutdown(socket.SHUT_RDWR)
        if self.done.is_set():
            self._dropped()

    def _spoken(self, connection: http.client.HTTPConnection) -> Reply | None:
        method, path, body = self._request
        connection.request(method, path, body, self._transport.headers)
        response = connection.getresponse()
        if (response.length or 0) > self._limit:
            return None
        data = response.read(self._limit + 1)
        if len(data) > self._limit:
            return None
        after = response.headers.get("Retry-After", "0")
        return Reply(response.status, data, float(after) if after.isdigit() else 0.0)

    def _dropped(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
