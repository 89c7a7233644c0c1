"""Who may speak to a shard: tokens, TLS, trainers in the place of others, folders of checkpoints."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pyarrow.flight as fl
import pytest
from served_tables import GROUPS, Serve, all_keys, read

from headrace.embeddings import TableConfig
from headrace.embeddings.shards.group import GroupOptions, ShardGroup
from headrace.embeddings.shards.security import ClientSecurity, ServerSecurity
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.shards.wire import (
    PROTOCOL,
    StreamHeader,
    read_schema,
)
from headrace.errors import ConfigError, ShardError, ShardLost


def test_a_second_client_with_the_number_of_a_trainer_that_lives_is_refused(serve: Serve) -> None:
    address = serve()
    again = {"trainer": 0, "num_trainers": 2, "session": "s"}
    taken = "trainer 0: is already taken by another client of this session"
    with ShardGroup([address], GROUPS, **again) as first:  # type: ignore[arg-type]
        with pytest.raises(ShardError, match=taken):
            ShardGroup([address], GROUPS, **again)  # type: ignore[arg-type]
        before = read(first.store("t"), all_keys())
        with fl.connect(f"grpc://{address}") as stranger:
            for call in ("read", "update"):
                header = StreamHeader(PROTOCOL, call, "s", "t", 0, "fp32")
                writer, reader = stranger.do_exchange(fl.FlightDescriptor.for_command(header.to_json()))
                with suppress(fl.FlightError, StopIteration):
                    writer.begin(read_schema(with_counts=False))
                    reader.read_chunk()
                with pytest.raises(fl.FlightError, match=taken):
                    writer.close()
            save = fl.Action("save", b'{"session":"s","folder":".00000001.1.partial","step":0}')
            for action in (save, fl.Action("end_window", b'{"session":"s","window":1,"step":0}')):
                with pytest.raises(fl.FlightError, match="requested by a client that is not a trainer of this session"):
                    list(stranger.do_action(action))
        assert (read(first.store("t"), all_keys()) == before).all()
    with ShardGroup([address], GROUPS, **again) as second:  # type: ignore[arg-type]
        read(second.store("t"), all_keys())


def test_a_shard_of_a_job_refuses_the_tables_of_another(tmp_path: Path) -> None:
    other = TableGroupSpec([TableConfig(name="hashed", num_embeddings=51, embedding_dim=4)], seed=3)
    server = ShardServer(Shard(expected={"t": other}), "127.0.0.1:0")
    with pytest.raises(ShardError, match="table group t differs from the one in this shard's job file"):
        ShardGroup([f"127.0.0.1:{server.port}"], GROUPS)
    server.shutdown()


def test_a_checkpoint_is_not_written_anywhere_but_where_the_shard_was_told(tmp_path: Path) -> None:
    server = ShardServer(Shard(checkpoints=tmp_path / "checkpoints"), "127.0.0.1:0")
    partial = tmp_path / "checkpoints" / ".00000001.77.partial"
    partial.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    with ShardGroup([f"127.0.0.1:{server.port}"], GROUPS) as group:
        for folder in ("../elsewhere", "/tmp", "00000001", ".00000002.77.partial"):
            with pytest.raises(ShardError, match="expected a checkpoint being written in"):
                group.save(folder, 0)
        files = group.save(partial.name, 0)
        assert "tables/t/shard-0000-of-0001/weights.npy" in files
        written = {file: (partial / file).read_bytes() for file in files}
        assert group.save(partial.name, 0) == files, "asked again, because the answer was lost"
        assert {file: (partial / file).read_bytes() for file in files} == written
        assert sorted(str(path.relative_to(partial)) for path in partial.rglob("*.*")) == sorted(files)
        server._shard._served["t"]._hold_s = 0.1
        with pytest.raises(ShardError, match="end of window 1 waited"):
            group.end_window(5)
    server.shutdown()


def test_a_token_keeps_others_out(serve: Serve) -> None:
    address = serve(security=ServerSecurity(token="t" * 20))
    for token in (None, "u" * 20):
        options = GroupOptions(security=ClientSecurity(token=token))
        with pytest.raises(ShardError, match="the token is missing or wrong"):
            ShardGroup([address], GROUPS, options=options)
    with ShardGroup([address], GROUPS, options=GroupOptions(security=ClientSecurity(token="t" * 20))) as group:
        read(group.store("t"), all_keys())


def test_tls_is_spoken_and_checked(serve: Serve, tmp_path: Path) -> None:
    certificate, key = make_certificate()
    other, _ = make_certificate()
    address = serve(security=ServerSecurity(token="t" * 20, certificate=certificate, key=key))
    good = GroupOptions(security=ClientSecurity(token="t" * 20, authority=certificate))
    with ShardGroup([address], GROUPS, options=good) as group:
        read(group.store("t"), all_keys())
    wrong = GroupOptions(security=ClientSecurity(token="t" * 20, authority=other), retry_s=0.1)
    with pytest.raises(ShardLost, match="cannot be reached"):
        ShardGroup([address], GROUPS, options=wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "[::]", "shard.example.org"])
def test_other_addresses_than_loopback_need_a_token_and_tls(host: str) -> None:
    with pytest.raises(ConfigError, match=r"needs a token \(--token-file\) and TLS"):
        ShardServer(Shard(), f"{host}:9000")
    with pytest.raises(ConfigError, match=r"needs a token and cluster\.tls_authority"):
        ShardGroup([f"{host}:9000"], GROUPS, options=GroupOptions(security=ClientSecurity(token="t" * 20)))


def make_certificate() -> tuple[bytes, bytes]:
    """A certificate of its own for 127.0.0.1, and its key, as PEM."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shard")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), secret
