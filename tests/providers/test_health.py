"""The circuit of an upstream, with a clock in hand."""

from __future__ import annotations

from providers.health import Circuit


def opened() -> Circuit:
    circuit = Circuit(rand=lambda: 0.5)
    for n in range(5):
        assert circuit.failed(float(n), threshold=5, open_s=30.0, error="connect") is (n == 4)
    return circuit


def test_it_opens_after_the_threshold_of_consecutive_failures() -> None:
    circuit = opened()
    assert "circuit open after 5" in circuit.reason(5.0)
    assert not circuit.quiet


def test_a_success_between_failures_starts_the_count_again() -> None:
    circuit = Circuit()
    for n in range(20):
        assert not circuit.failed(float(n), threshold=5, open_s=30.0, error="x")
        if n % 4 == 3:
            circuit.succeeded()
    assert circuit.quiet


def test_after_the_open_time_one_probe_at_a_time_goes_through() -> None:
    circuit = opened()
    assert circuit.reason(34.1) == ""
    circuit.started(34.1)
    assert "half-open" in circuit.reason(34.2)
    circuit.succeeded()
    assert circuit.quiet
    assert circuit.reason(34.3) == ""


def test_a_failed_probe_opens_it_for_longer() -> None:
    circuit = opened()
    circuit.started(34.1)
    assert circuit.failed(34.2, threshold=5, open_s=30.0, error="again")
    assert circuit.reason(34.2 + 59) != ""
    assert circuit.reason(34.2 + 61) == ""


def test_a_probe_whose_client_left_lets_the_next_one_try() -> None:
    circuit = opened()
    circuit.started(40.0)
    circuit.abandoned()
    assert circuit.reason(40.1) == ""


def test_a_rate_limit_cools_down_without_counting_as_failure() -> None:
    circuit = Circuit()
    circuit.cool_down(100.0, 7.0)
    assert "rate limited" in circuit.reason(101.0)
    assert circuit.reason(107.5) == ""
    assert circuit.quiet
    assert circuit.failures == 0


def test_calls_in_flight_when_it_opened_do_not_prolong_it() -> None:
    circuit = opened()
    until = circuit.open_until
    assert not circuit.failed(6.0, threshold=5, open_s=30.0, error="late")
    assert circuit.open_until == until


def test_a_call_that_started_while_it_was_open_is_not_the_probe() -> None:
    circuit = opened()
    circuit.started(29.0)  # the last candidate there was
    assert not circuit.failed(29.5, threshold=5, open_s=30.0, error="again")
    assert circuit.reason(34.1) == ""


def test_a_circuit_knows_when_the_last_call_was_sent_whatever_became_of_it():
    circuit = Circuit()
    assert circuit.started_at == 0.0
    circuit.started(12.0)
    circuit.failed(13.0, threshold=5, open_s=30.0, error="connect")
    assert circuit.started_at == 12.0
