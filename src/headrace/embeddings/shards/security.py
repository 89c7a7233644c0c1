"""Access to shards: loopback by default; other addresses need a token and TLS on both sides."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import ConfigError

__all__ = ["TOKEN_VARIABLE", "ClientSecurity", "ServerSecurity", "is_loopback", "read_token", "split_address"]

TOKEN_VARIABLE = "HEADRACE_SHARD_TOKEN"
"""Environment variable with the token, used if no file is given."""

SHORTEST_TOKEN = 16

TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class ServerSecurity:
    """Security settings of a shard.

    Attributes:
        token: Token that clients must send with every call; None for no token.
        certificate: PEM of the TLS certificate chain; None for no TLS.
        key: PEM of the private key.
    """

    token: str | None = field(default=None, repr=False)
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    @classmethod
    def of_files(cls, token: str | None, certificate: Path | None, key: Path | None) -> ServerSecurity:
        """The settings with certificate and key from files."""
        return cls(token, _read(certificate), _read(key))

    def check(self, host: str) -> None:
        """Check that an address other than loopback has a token and TLS.

        Raises:
            ConfigError: Token or TLS is missing, or certificate and key cannot be used.
        """
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("TLS: given one of certificate and key, expected both: --tls-cert FILE --tls-key FILE")
        missing = [
            name
            for name, value in (("a token (--token-file)", self.token), ("TLS (--tls-cert, --tls-key)", self.key))
            if value is None
        ]
        if missing and not is_loopback(host):
            raise ConfigError(f"--listen {host}: is not a loopback address and needs {' and '.join(missing)}")
        if self.certificate is not None and self.key is not None:
            _check_key_pair(self.certificate, self.key)

    def accepts(self, authorization: str) -> bool:
        """Whether a call with this header is authorized; compares in constant time."""
        return self.token is None or hmac.compare_digest(authorization.encode(), f"Bearer {self.token}".encode())


@dataclass(frozen=True)
class ClientSecurity:
    """Security settings of a trainer.

    Attributes:
        token: Token of the shards.
        authority: PEM of the certificate authority for the shards' certificates; None for no TLS.
    """

    token: str | None = field(default=None, repr=False)
    authority: bytes | None = None

    @classmethod
    def of_files(cls, token: str | None, authority: Path | None) -> ClientSecurity:
        """The settings with the authority from a file."""
        return cls(token, _read(authority))

    def check(self, host: str, *, who: str = "shard", key: str = "cluster.tls_authority") -> None:
        """Check that a token and rows are not sent unencrypted to other machines.

        Args:
            host: The server's host.
            who: What it is, and
            key: the setting of the authority, for the message.

        Raises:
            ConfigError: Token or authority is missing, or the authority cannot be used.
        """
        if self.authority is not None:
            _check_authority(self.authority)
        if not is_loopback(host) and (self.token is None or self.authority is None):
            raise ConfigError(f"{who} {host}: is not on this machine and needs a token and {key}")


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" into host and port; IPv6 hosts are in brackets.

    Raises:
        ConfigError: The address has a different form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"address {address!r}: expected HOST:PORT, such as 127.0.0.1:9000")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(path: str | Path | None, variable: str = TOKEN_VARIABLE) -> str | None:
    """Read the token from a file or the environment; None if there is neither.

    Raises:
        ConfigError: The token is too short, or cannot be sent in a header.
    """
    where = path or variable
    try:
        token = os.environ.get(variable) if path is None else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: not text, expected a token in one line") from error
    token = None if token is None else token.strip()
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise ConfigError(f"{where}: a token of {len(token)} characters, expected at least {SHORTEST_TOKEN}")
    if token is not None and not TOKEN.fullmatch(token):
        raise ConfigError(f"{where}: expected a token of printable ASCII characters without spaces, in one line")
    return token


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _check_key_pair(certificate: bytes, key: bytes) -> None:
    """Check certificate and key, because gRPC reports errors only in its log."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as private:  # OpenSSL needs files; only this user can read the folder
        paths = Path(private) / "certificate.pem", Path(private) / "key.pem"
        for path, data in zip(paths, (certificate, key), strict=True):
            path.write_bytes(data)
        try:
            context.load_cert_chain(*paths, password="")  # refuses a key with a password instead of prompting for it
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"TLS: certificate and key cannot be used ({_reason(error)}), expected --tls-cert with a PEM "
                "certificate and --tls-key with the PEM key it belongs to, without a password"
            ) from error


def _check_authority(authority: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"TLS: cluster.tls_authority cannot be used ({_reason(error)}), expected a file with a PEM certificate"
        ) from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if isinstance(error, ssl.SSLError) and reason else "not PEM"
