"""The pages, as a browser finds them: by following links from the first one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

pytest.importorskip("jinja2", reason="the extra `serve` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="the test client of starlette needs httpx2")

from starlette.testclient import TestClient

from rlmix.policy.artifact import load
from rlmix.service.app import create_app
from rlmix.service.storage.abstract import AbstractStorage

LOCAL = "http://localhost"
BASE = "/v1/projects/default"
EVIL = "<script>alert('&\"')</script>"
STYLE = Path(__file__).resolve().parents[2] / "rlmix" / "service" / "templates" / "style.css"


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def counted(self, tag: str) -> int:
        return len(self.all(tag))

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def client(storage: AbstractStorage, policy: Path) -> Iterator[TestClient]:
    """Return a client of a service with two runs: one long and over, one that has only begun."""
    names = load(policy).observation_names
    document = storage.version("default", "default", 1).document
    labels = {"data": EVIL, "model": "cnn"}
    with TestClient(create_app(storage), LOCAL) as made:
        made.put("/v1/projects/empty")
        run = {"policy": "default", "alias": "default", "total_steps": 100, "num_classes": 10, "labels": labels}
        for name in ("done", "begun"):
            assert made.put(f"{BASE}/runs/{name}", json=run).status_code == 201
        for seq in range(6):
            body: dict[str, Any] = {"step": 10 * seq, "policy": document, "observation": [0.1 * seq] * len(names)}
            if seq in (3, 4):
                said = made.get(f"{BASE}/runs/done/decisions/0").json()
                origin = "held" if seq == 3 else "snapshot"
                body["taken"] = {"origin": origin, "entry": said["entry"], "decision": said["decision"]}
            assert made.put(f"{BASE}/runs/done/decisions/{seq}", json=body).status_code == 201
            values = {"val_accuracy": 0.1 * seq, "loss": 1.0}
            assert made.put(f"{BASE}/runs/done/feedback/{seq}", json={"values": values}).status_code == 201
        made.post(f"{BASE}/runs/done:end", json={"state": "finished"})
        yield made


def walked(client: TestClient) -> dict[str, Page]:
    """Return every page that links lead to from the first, by its address."""
    found: dict[str, Page] = {}
    ahead = ["/"]
    while ahead:
        place = ahead.pop()
        if place in found:
            continue
        reply = client.get(place)
        assert reply.status_code == 200, place
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        found[place] = Page(reply.text)
        for link in found[place].all("a"):
            target = urlsplit(urljoin(f"{LOCAL}{place}", str(link["href"])))
            assert f"{target.scheme}://{target.netloc}" == LOCAL, link
            ahead.append(target.path + (f"?{target.query}" if target.query else ""))
    return found


def test_links_lead_to_every_kind_of_page(client: TestClient) -> None:
    """A page that no link leads to does not exist for whoever looks around."""
    assert set(walked(client)) >= {
        "/", "/projects/default", "/projects/empty", "/projects/default/runs", "/projects/default/runs/done",
        "/projects/default/runs/begun", "/projects/default/policies/default",
        "/projects/default/policies/default/versions/1",
    }  # fmt: skip


def test_every_page_can_be_used_without_eyes_or_mouse(client: TestClient) -> None:
    """Landmarks, headings and names of tables are what a screen reader goes by."""
    titles = set()
    for place, page in [*walked(client).items(), ("/nope", Page(client.get("/projects/nope").text))]:
        assert page.all("html")[0] == {"lang": "en"}, place
        assert [page.counted(tag) for tag in ("h1", "main", "header", "nav")] == [1] * 4, place
        assert page.counted("title") >= 1, place
        assert page.all("a")[0] == {"class": "skip", "href": "#main"}, place
        assert page.all("main")[0]["id"] == "main", place
        assert page.counted("table") == page.counted("caption"), place
        assert all(cell.get("scope") in ("col", "row") for cell in page.all("th")), place
        assert all("aria-label" in one for one in page.all("nav")), place
        # What scrolls by itself must be reached by the keyboard.
        for one in page.all("div"):
            if one.get("class") in ("table", "picture"):
                assert (one["role"], one["tabindex"]) == ("region", "0"), place
                assert one["aria-label"], place
        for drawing in page.all("svg"):
            named = str(drawing.get("aria-labelledby", "")).split()
            assert drawing.get("aria-hidden") == "true" or drawing["role"] == "img", place
            ids = {attributes.get("id") for _, attributes in page.tags}
            assert set(named) <= ids, place
        identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(identifiers) == len(set(identifiers)), place
        titles.add(page.text.split(" · ")[0])
    assert len(titles) >= 7


def test_pages_bring_nothing_that_their_policy_forbids(client: TestClient) -> None:
    """Neither scripts nor styles of their own, nor anything from elsewhere."""
    for place, page in walked(client).items():
        policy = client.get(place).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self';")
        assert "unsafe" not in policy
        for tag, attributes in page.tags:
            assert tag not in ("script", "style", "iframe", "object", "embed", "base", "form", "img", "input"), place
            assert not [name for name in attributes if name == "style" or name.startswith("on")], (place, tag)
            assert not [value for value in attributes.values() if value and "//" in value], (place, tag)
        assert page.all("link") == [{"rel": "stylesheet", "href": "/style.css"}]
    style = client.get("/style.css")
    assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert not re.search(r"url\(|@import|//", style.text)


def test_what_clients_write_is_text(client: TestClient) -> None:
    """A label is shown to whoever looks after the service, in a browser that trusts it."""
    reply = client.get("/projects/default/runs/done")
    assert EVIL in Page(reply.text).text
    assert "<script" not in reply.text
    for place in (f"/projects/{EVIL}", "/projects/%3Cscript%3E", "/projects/default/policies/default/versions/<b>"):
        missing = client.get(place.replace("/script", "%2Fscript"))
        assert missing.status_code == 404
        assert "<script" not in missing.text
        assert "<b>" not in missing.text
    paged = client.get("/projects/default/runs", params={"after": f"a{EVIL}"})
    assert paged.status_code == 200
    assert "<script" not in paged.text


def test_a_run_is_shown_with_all_that_happened_in_it(client: TestClient) -> None:
    """The drawing and the table beside it say the same."""
    page = Page(client.get("/projects/default/runs/done").text)
    bars = [one for one in page.all("rect") if one.get("class") in ("server", "held", "snapshot") and "y" in one]
    drawn = bars[:-3]
    assert [one["class"] for one in drawn] == ["server"] * 3 + ["held", "snapshot", "server"]
    widths = [float(str(one["width"])) for one in drawn]
    assert max(widths[:-1]) - min(widths[:-1]) < 0.1
    assert widths[-1] == pytest.approx(5 * widths[0], abs=0.1)
    assert page.counted("circle") == 12
    for expected in ("finished", "4 server", "1 held", "val_accuracy 0.5", "0 to 10", "50 to 100", "total steps"):
        assert expected in page.text, expected
    begun = Page(client.get("/projects/default/runs/begun").text)
    assert "Nothing was decided yet." in begun.text
    listed = Page(client.get("/projects/default").text)
    assert listed.text.index("begun") < listed.text.index("done")
    assert "loss 1, val_accuracy 0.5" in listed.text


def test_a_version_is_shown_with_its_card(client: TestClient, policy: Path) -> None:
    """Where a policy comes from decides whether it is trusted."""
    page = Page(client.get("/projects/default/policies/default/versions/1").text)
    card = json.loads((policy / "policy.json").read_text(encoding="utf-8"))["card"]
    assert card["algorithm"] in page.text
    for name in load(policy).catalogue.names:
        assert name in page.words
    for place in ("0", "2", "-1", "1e0", "\u00b2", "9" * 30):
        assert client.get(f"/projects/default/policies/default/versions/{place}").status_code == 404


def test_the_policy_of_the_package_is_shown_with_its_results(storage: AbstractStorage) -> None:
    """Its card has all that a card can have."""
    from rlmix.service.server import publish

    publish(storage, Path("default"), policy="shipped")
    with TestClient(create_app(storage), LOCAL) as client:
        page = Page(client.get("/projects/default/policies/shipped/versions/1").text)
    assert {"Results", "Limits", "Entries", "Observation"} <= set(page.words)


def test_many_runs_come_in_pages(client: TestClient) -> None:
    """The newest on one page, and all of them by name on others."""
    run = {"policy": "default", "alias": "default", "total_steps": 100, "num_classes": 10}
    for number in range(105):
        client.put(f"{BASE}/runs/m{number:03}", json=run)
    pages = walked(client)
    shown = {place for place in pages if place.startswith("/projects/default/runs/")}
    assert len(shown) == 107
    assert "m104" in pages["/projects/default"].words
    assert "m000" not in pages["/projects/default"].words


def colours(text: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", text))


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, 1 to 21 (WCAG 2)."""

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(first), light(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_all_text_can_be_read(dark: bool) -> None:
    """4.5 is what WCAG asks of text, in light and in dark."""
    found = STYLE.read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    named = colours(found[0]) | (colours(found[1]) if dark else {})
    for ink in ("ink", "note", "accent", "good", "bad", "warn"):
        for ground in ("page", "card"):
            assert contrast(named[ink], named[ground]) >= 4.5, (ink, ground)
