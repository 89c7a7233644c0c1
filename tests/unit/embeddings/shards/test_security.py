"""Addresses, tokens, and what may be reached without them."""

from pathlib import Path

import pytest

from headrace.embeddings.shards.security import (
    TOKEN_VARIABLE,
    ClientSecurity,
    ServerSecurity,
    is_loopback,
    read_token,
    split_address,
)
from headrace.errors import ConfigError


def test_addresses_are_split_and_wrong_ones_shown() -> None:
    assert split_address("127.0.0.1:9000") == ("127.0.0.1", 9000)
    assert split_address("[::1]:0") == ("::1", 0)
    for address in ("localhost", ":9000", "host:", "host:http", "host:70000"):
        with pytest.raises(ConfigError, match="expected HOST:PORT, such as"):
            split_address(address)


def test_only_this_machine_is_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", ""))


def test_a_token_comes_from_a_file_or_the_environment_and_is_not_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    (tmp_path / "token").write_text("a" * 20 + "\n")
    assert read_token(tmp_path / "token") == "a" * 20
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigError, match=f"{TOKEN_VARIABLE}: a token of 5 characters, expected at least 16"):
        read_token(None)


def test_secrets_are_not_printed() -> None:
    assert "secret" not in repr(ServerSecurity("secret", b"cert", b"secret")) + repr(ClientSecurity("secret"))


def test_half_of_tls_is_refused() -> None:
    with pytest.raises(ConfigError, match="given one of certificate and key, expected both"):
        ServerSecurity(certificate=b"cert").check("127.0.0.1")


@pytest.mark.parametrize(
    "pem", [b"", b"garbage", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_one_clear_line_before_anything_listens(pem: bytes) -> None:
    with pytest.raises(
        ConfigError, match=r"^TLS: certificate and key cannot be used \(.+\), expected --tls-cert with"
    ) as e:
        ServerSecurity("t" * 20, pem, pem).check("127.0.0.1")
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match=r"^TLS: cluster\.tls_authority cannot be used \(.+\), expected a file with"):
        ClientSecurity("t" * 20, pem).check("127.0.0.1")


@pytest.mark.parametrize(
    "token", ["a token of several words", "first-line-of-token\nsecond-line", "täglich-neuer-schlüssel"]
)
def test_a_token_that_cannot_travel_in_a_header_is_refused(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token, encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a token of printable ASCII characters without spaces"):
        read_token(tmp_path / "token")
    (tmp_path / "token").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="token: not text, expected a token in one line"):
        read_token(tmp_path / "token")
