"""What a token opens, of each route that there is."""

from __future__ import annotations

import base64
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="the test client of starlette needs httpx2")

from fastapi import FastAPI, routing
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from rlmix.service.app import create_app
from rlmix.service.front import OPEN
from rlmix.service.guard import Tokens
from rlmix.service.records import Scope, Token
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.sql import now
from rlmix.service.tokens import SCOPES, digest_of, new_secret

LOCAL = "http://localhost"
FILE = "f" * 32
# What a token of one project may see outside its project: nothing of others, and only what it has the name of.
COMMON = {"/", "/style.css", "/v1/info", "/v1/projects", "/v1/openapi.json", "/v1/blobs/sha256/{digest}"}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Return method and path of every route, however deep it was put in."""
    # Newer releases keep the routers that were put in as they are.
    every = routing.iter_route_contexts(app.routes) if hasattr(routing, "iter_route_contexts") else app.routes
    found = []
    for one in every:
        route = getattr(one, "route", one)
        assert isinstance(route, APIRoute), f"{route} has no guard that this test knows"
        path = getattr(getattr(one, "_route_context", None), "path", route.path)
        # `{run:segment}` is `{run}` to whoever reads it.
        found += [(method, re.sub(r"{(\w+):\w+}", r"{\1}", path)) for method in route.methods]
    return sorted(found)


def needed(method: str, path: str) -> Scope:
    """Return the scope that a route should need, said here a second time."""
    if method == "GET":
        return "read"
    if "/runs/" in path or path.endswith(":decide"):
        return "decide"
    return "admin" if path == "/v1/projects/{project}" else "publish"


def filled(path: str) -> str:
    numbers = {"seq": "1", "number": "1", "project": "p", "digest": "0" * 64}
    return re.sub(r"{(\w+)}", lambda found: numbers.get(found[1], "x"), path)


@pytest.fixture
def app(storage: AbstractStorage) -> FastAPI:
    storage.create_project("p")
    storage.create_project("other")
    # The walk asks more often than a training does.
    return create_app(storage, tokens=Tokens((FILE,)), rate=0)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, LOCAL) as made:
        yield made


def token(storage: AbstractStorage, *scopes: Scope, project: str | None = None) -> str:
    secret = new_secret()
    name = f"{'-'.join(scopes)}-{project or 'all'}"
    stored = Token(name=name, project=project, scopes=scopes, created=now(), expires=None, revoked=None)
    storage.create_token(stored, digest_of(secret))
    return secret


def sent(client: TestClient, method: str, path: str, secret: str | None, **more: object) -> int:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    return int(client.request(method, filled(path), headers=headers, **more).status_code)


def test_all_routes_are_seen(app: FastAPI) -> None:
    """A walk that finds nothing would find every route guarded."""
    found = routes(app)
    described = {(method.upper(), path) for path, operations in app.openapi()["paths"].items() for method in operations}
    assert len(described) > 28
    hidden = {("GET", "/v1/openapi.json"), ("GET", "/metrics"), ("GET", "/"), ("GET", "/style.css")}
    pages = {(method, path) for method, path in found if path.startswith("/projects/")}
    assert len(pages) == 5
    assert {method for method, _ in pages} == {"GET"}
    assert set(found) == described | hidden | pages
    assert app.openapi_url is None
    assert app.docs_url is None


def test_every_route_but_health_needs_a_token(app: FastAPI, client: TestClient) -> None:
    """A route that was added without its guard is the one that is found."""
    for method, path in routes(app):
        refused = sent(client, method, path, None) == 401
        assert refused == (path not in OPEN), path
        if refused:
            assert sent(client, method, path, new_secret()) == 401, path
            # Nothing of a body is looked at before.
            assert sent(client, method, path, None, content=b"[" * 10_000) == 401, path
            assert sent(client, method, path, FILE) != 401, path
    assert sent(client, "GET", "/anything", None) == 401
    assert client.get("/readyz").json() == {"status": "ready", "auth": "on"}


def test_every_route_needs_its_scope(app: FastAPI, client: TestClient, storage: AbstractStorage) -> None:
    """Who may look must not change anything, and who trains must not replace what others train with."""
    tokens = {scope: token(storage, scope) for scope in SCOPES}
    for method, path in routes(app):
        if path in OPEN:
            continue
        for scope, secret in tokens.items():
            passes = scope in (needed(method, path), "admin")
            # Pages are asked for with the token as password, but take it as all others do too.
            assert (sent(client, method, path, secret) == 403) == (not passes), (method, path, scope)


def test_another_project_is_closed(app: FastAPI, client: TestClient, storage: AbstractStorage) -> None:
    """Whatever a token may do in its own."""
    own, other = token(storage, "admin", project="p"), token(storage, "admin", project="other")
    for method, path in routes(app):
        if path in OPEN:
            continue
        assert (sent(client, method, path, other) == 403) == (path not in COMMON), (method, path)
        assert (sent(client, method, path, own) == 403) == (path == "/metrics"), (method, path)
    told = client.get("/v1/projects", headers={"Authorization": f"Bearer {other}"}).json()
    assert told == {"projects": ["other"]}
    page = client.get("/", headers={"Authorization": f"Bearer {other}"}).text
    assert 'href="/projects/other"' in page
    assert "default" not in page


def test_a_browser_signs_in_to_pages_alone(client: TestClient, storage: AbstractStorage) -> None:
    """It sends the password along wherever another site's page leads it."""
    secret = token(storage, "read", project="p")
    refused = client.get("/")
    assert refused.headers["www-authenticate"].startswith("Basic ")
    pair = {"Authorization": "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()}
    assert client.get("/projects/p", headers=pair).status_code == 200
    assert client.get("/projects/other", headers=pair).status_code == 403
    for place in ("/v1/projects", "/metrics"):
        reply = client.get(place, headers=pair)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


def test_a_header_that_is_no_token_is_refused(client: TestClient) -> None:
    """Whatever it is."""
    for header in ("", FILE, f"Basic {FILE}", f"Bearer {FILE}x", "Bearer", "Bearer \u00e9".encode(), "Bearer a b"):
        assert client.get("/v1/projects", headers={"Authorization": header}).status_code == 401
    assert client.get("/v1/projects", headers={"Authorization": f"Bearer {FILE}"}).status_code == 200


def test_a_service_without_tokens_is_open(storage: AbstractStorage) -> None:
    """On this machine nobody should need any, to begin with."""
    with TestClient(create_app(storage), LOCAL) as client:
        assert client.get("/readyz").json()["auth"] == "off"
        assert [client.get(place).status_code for place in ("/", "/metrics", "/v1/projects")] == [200] * 3


def test_a_token_of_the_database_is_enough_for_another_address(
    start: Callable[..., tuple[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it opens the service that was started after it was made."""
    from rlmix.cli.main import main

    db = f"sqlite:///{tmp_path}/rlmix.db"
    with pytest.raises(SystemExit):
        main(["token", "create", "a", "--scopes", "read", "--db", db])
    secret = capsys.readouterr().out.strip()
    url, _ = start("--host", "0.0.0.0", "--port", "0", "--db", db)
    place = url.replace("0.0.0.0", "127.0.0.1") + "/v1/projects"
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(place, timeout=10)
    refused.value.close()
    request = urllib.request.Request(place, headers={"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.status == 200
