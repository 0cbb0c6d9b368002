"""Who may ask."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from rlmix.errors import ConfigError
from rlmix.service.guard import Tokens, check_address, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_machine_needs_no_token(host: str) -> None:
    """The first thing that everybody does must work."""
    assert is_loopback(host)
    check_address(host, Tokens(), open_to_all=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_other_machines_need_one_or_a_word(host: str) -> None:
    """Services that were open by accident are found within hours."""
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="--token-file"):
        check_address(host, Tokens(), open_to_all=False)
    check_address(host, Tokens(("x" * 32,)), open_to_all=False)
    check_address(host, Tokens(), open_to_all=True)


def test_a_token_file_is_read_strictly(tmp_path: Path) -> None:
    """A file that opens nothing, or is open to others, must not look like protection."""
    path = tmp_path / "tokens"
    for text, mode, message in (
        ("", 0o600, "on each line"),
        ("# only a comment\n", 0o600, "on each line"),
        ("short\n", 0o600, "at least 32"),
        ("x" * 32, 0o644, "chmod 600"),
    ):
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        with pytest.raises(ConfigError, match=message):
            Tokens.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.read(tmp_path / "absent")
    path.write_text(f"# mine\n{'x' * 32}\n\n{'y' * 40}\n", encoding="utf-8")
    path.chmod(0o600)
    tokens = Tokens.read(path)
    assert tokens
    assert tokens.admit("Bearer " + "y" * 40)
    assert tokens.admit("bearer " + "x" * 32)
    assert not tokens.admit(None)
    assert not tokens.admit("Bearer " + "z" * 40)
