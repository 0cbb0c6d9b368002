"""The examples in deploy/: that they parse, and that the commands in them exist."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text("compose.yaml"))
    return found


def unit() -> configparser.RawConfigParser:
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str  # type: ignore[method-assign, assignment]
    parsed.read_string(text("rlmix.service"))
    return parsed


def commands() -> dict[str, list[str]]:
    """Return what stands after `rlmix` in each place."""
    image = re.search(r"^CMD (\[.*\])$", text("Dockerfile"), re.MULTILINE)
    assert image is not None
    found = {
        "image": json.loads(image[1]),
        "compose": compose()["services"]["service"]["command"],
        "unit": unit()["Service"]["ExecStart"].split()[1:],
    }
    for name in ("Dockerfile", "compose.yaml", "rlmix.service"):
        shown = [line for line in text(name).replace("\n# ", " ").splitlines() if " token create NAME" in line]
        assert len(shown) == 1, name
        found[f"token in {name}"] = re.sub(r".* (token create NAME( --db [^\s)]+)?).*", r"\1", shown[0]).split()
    return found


@pytest.mark.parametrize("place", commands())
def test_the_commands_exist_with_their_options(place: str) -> None:
    """An option that was renamed would be found by whoever updates a service that others use."""
    import typer.main

    from rlmix.cli.main import app

    words = list(commands()[place])
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, place
        command = command.commands[words.pop(0)]
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    given = [word for word in words if word.startswith("--")]
    assert set(given) <= set(options)
    if place in ("image", "compose"):
        assert "--host" in given


def test_the_image_has_no_root_and_is_watched() -> None:
    """Its files are in the repository."""
    lines = text("Dockerfile").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
    assert [line for line in lines if line.startswith("HEALTHCHECK ")]
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (DEPLOY.parent / name).exists(), name


def test_compose_keeps_its_secrets_and_is_closed() -> None:
    """A password in a file of settings is soon in a repository."""
    services = compose()["services"]
    assert (DEPLOY / services["service"]["build"]["context"] / services["service"]["build"]["dockerfile"]).is_file()
    assert all(port.startswith("127.0.0.1:") for port in services["service"]["ports"])
    assert "ports" not in services["database"]
    for service in services.values():
        assert service["secrets"] == ["postgres-password"]
        assert not [name for name in service["environment"] if name.endswith("PASSWORD")]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_unit_leaves_time_to_end_and_closes_the_rest() -> None:
    """What is under way when it is stopped must be answered."""
    from rlmix.service.server import GRACE_SECONDS

    settings = unit()["Service"]
    assert int(settings["TimeoutStopSec"]) > GRACE_SECONDS
    assert int(compose()["services"]["service"]["stop_grace_period"].rstrip("s")) > GRACE_SECONDS
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictNamespaces"):
        assert settings[name] == "yes"
    assert settings["ProtectSystem"] == "strict"
    program = shutil.which("systemd-analyze")
    if program is not None:
        # The program itself is not installed there.
        checked = subprocess.run(
            [program, "verify", str(DEPLOY / "rlmix.service")], capture_output=True, text=True, check=False
        )
        others = [line for line in checked.stderr.splitlines() if "rlmix.service:" in line and "not exec" not in line]
        assert not [line for line in others if "Unknown" in line or "Failed to parse" in line], others


def test_the_proxy_lets_through_what_the_service_takes() -> None:
    """A smaller limit would refuse policies, without a problem that says why."""
    from rlmix.service.front import BLOB_BYTES

    found = text("nginx.conf")
    assert found.count("{") == found.count("}")
    size = re.search(r"client_max_body_size (\d+)m;", found)
    assert size is not None
    assert int(size[1]) * 2**20 == BLOB_BYTES
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in found
    port = re.search(r"server 127\.0\.0\.1:(\d+);", found)
    assert port is not None
    assert port[1] == "8490"
    host = re.search(r"--allow-host (\S+)", text("rlmix.service"))
    assert host is not None
    assert f"server_name {host[1]};" in found
    assert re.findall(r"^\s*#? ?proxy_set_header (\S+)", found, re.MULTILINE)[:2] == ["Connection", "Host"]
