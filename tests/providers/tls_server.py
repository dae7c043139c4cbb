"""A real TLS server that keeps every byte it was sent and every certificate it was shown; certificates for it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import ssl
import threading

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from providers import tls

MODELS = {"object": "list", "data": [{"id": "small"}]}
COMPLETION = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def pem_of(authority: trustme.CA) -> str:
    return authority.cert_pem.bytes().decode()


def chain_of(leaf: trustme.LeafCert) -> str:
    return "".join(each.bytes().decode() for each in leaf.cert_chain_pems)


def key_of(leaf: trustme.LeafCert) -> str:
    return leaf.private_key_pem.bytes().decode()


def pin_of(pem: str) -> str:
    return tls.pin_of(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))


def in_days(days: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=days)


class Site:
    """An authority, one below it, and a certificate for localhost that the lower one signed."""

    def __init__(self, *, days: float = 300) -> None:
        self.root = trustme.CA()
        self.middle = self.root.create_child_ca()
        self.leaf = self.middle.issue_cert("localhost", common_name="models.test", not_after=in_days(days))

    @property
    def ca_pem(self) -> str:
        return pem_of(self.root)

    @property
    def pins(self) -> dict[str, str]:
        leaf = self.leaf.cert_chain_pems[0].bytes().decode()
        return {"leaf": pin_of(leaf), "middle": pin_of(pem_of(self.middle)), "root": pin_of(pem_of(self.root))}

    def server(self, *, clients: trustme.CA | None = None, newest: ssl.TLSVersion | None = None) -> TlsServer:
        """`clients` is the authority whose certificates are demanded of those who connect."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.leaf.configure_cert(context)
        if newest is not None:
            context.maximum_version = newest
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            clients.configure_trust(context)
        return TlsServer(context)


class TlsServer:
    """Answers every request with a list of models, or a chat completion. Use as a context manager."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.received = b""  # behind the handshake
        self.connections = 0
        self.shown: list[str] = []  # common name of each client's certificate
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"https://localhost:{self._socket.getsockname()[1]}"

    def __enter__(self) -> TlsServer:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for sock in self._socks:
            with sock, contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                self.connections += 1
                self._socks.append(sock.dup())
                self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(5)
        with contextlib.suppress(OSError), self._context.wrap_socket(sock, server_side=True) as conn:
            subject = dict(part[0] for part in (conn.getpeercert() or {}).get("subject", ()))
            if "commonName" in subject:
                self.shown.append(subject["commonName"])
            while data := conn.recv(65536):  # the gateway sends head and body in one write
                self.received += data
                reply = json.dumps(COMPLETION if data.startswith(b"POST") else MODELS).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(reply)}\r\n\r\n"
                conn.sendall(head.encode() + reply)
