"""Certificates for an etcd and its clients, from an authority made for one run."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Authority:
    """An authority, the server's files, and the client's files, which may be replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(str(folder / "ca_file.pem"))
        self._authority.private_key_pem.write_to_path(str(folder / "authority_key.pem"))
        server = self._authority.issue_cert("127.0.0.1", "localhost")
        server.private_key_pem.write_to_path(str(folder / "server_key.pem"))
        server.cert_chain_pems[0].write_to_path(str(folder / "server_cert.pem"))
        renew(folder)

    @property
    def arguments(self) -> list[str]:
        """What etcd is started with."""
        return [
            f"--trusted-ca-file={self.folder / 'ca_file.pem'}",
            f"--cert-file={self.folder / 'server_cert.pem'}",
            f"--key-file={self.folder / 'server_key.pem'}",
            "--client-cert-auth",
        ]


def renew(folder: Path) -> None:
    """Replace the client's certificate and key, each at one stroke, by new ones of the same authority."""
    authority = trustme.CA.from_pem((folder / "ca_file.pem").read_bytes(), (folder / "authority_key.pem").read_bytes())
    # The gateway of etcd refuses a client whose certificate has a common name.
    client = authority.issue_cert("agent.test")
    for name, data in (("key_file", client.private_key_pem), ("cert_file", client.cert_chain_pems[0])):
        fresh = folder / f"{name}.new"
        data.write_to_path(str(fresh))
        fresh.replace(folder / f"{name}.pem")


def client_context(folder: Path) -> ssl.SSLContext:
    """How the checker itself connects."""
    context = ssl.create_default_context(cafile=str(folder / "ca_file.pem"))
    context.load_cert_chain(str(folder / "cert_file.pem"), str(folder / "key_file.pem"))
    return context
