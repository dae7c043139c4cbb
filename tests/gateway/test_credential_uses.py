"""What a worker knows of the last use of each credential."""

from __future__ import annotations

from gateway.snapshot import Connections


def test_a_credential_was_used_when_a_call_was_last_sent_with_it():
    connections = Connections()
    connections.circuit(1, 7).started(100.0)
    connections.circuit(1, 8)
    connections.circuit(2, 0).started(100.0)  # a provider without a credential
    assert connections.credentials_used(103.5) == {7: 3.5}
