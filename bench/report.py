"""From the measured figures to a table, a line for HISTORY.md, and a verdict.

Only ratios within one run decide (`--gate`): absolute times belong to the machine they were taken on.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]
PAGE_MS = 200.0  # an absolute bound, unlike the others: operators wait in seconds, not in ratios


@dataclass(frozen=True)
class Gate:
    """One bound. `value` is None when the run did not measure it, which passes."""

    name: str
    value: float | None
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the bound holds."""
        return self.value is None or self.value <= self.limit


def gates(figures: Figures) -> list[Gate]:
    """The bounds that a change may not break."""
    return [
        *_gateway_gates(figures),
        *_budget_gates(figures.get("budgets", {})),
        *_translation_gates(figures.get("translation", {})),
        *_policy_gates(figures.get("policies", {})),
        *_overload_gates(figures.get("overload", {})),
        *_audit_gates(figures.get("audit", {})),
        *_console_gates(figures.get("console", {})),
    ]


def _gateway_gates(figures: Figures) -> list[Gate]:
    if "unary" not in figures:
        return []
    unary, streams = figures["unary"], figures["streams"]
    counts = sorted(unary, key=int)
    held = figures.get("held", {}).get("hoosh")
    pages = figures.get("pages")
    return [
        Gate("unary CPU / nginx", _ratio(unary["32"], "cpu_us"), 5.0),
        Gate("CPU per streamed event / nginx", _ratio(streams["64"], "cpu_us"), 3.0),
        Gate(
            f"unary CPU at {counts[-1]} / at 32 connections",
            unary[counts[-1]]["hoosh"]["cpu_us"] / unary["32"]["hoosh"]["cpu_us"] if len(counts) > 1 else None,
            2.0,
        ),
        Gate("p99 while an admin page reloads / without", _pages_ratio(pages), 2.0),
        Gate("held streams not complete", held["streams"] - held["complete"] if held else None, 0.0),
        Gate("failed requests", _errors(figures), 0.0),
    ]


def _budget_gates(budgets: Figures) -> list[Gate]:
    found = []
    for database, sample in budgets.items():
        limited = sample["limited"]
        found += [
            Gate(f"budgets on {database}: CPU µs added to the worker", sample["added_us"], 10.0),
            Gate(f"budgets on {database}: control's CPU µs", limited.get("control_us"), 15.0),
            Gate(f"budgets on {database}: settle lag s, busy worker", sample["lag_busy_s"], 0.3),
            Gate(f"budgets on {database}: settle lag s, page and operator", sample["lag_operator_s"], 0.5),
            Gate(f"budgets on {database}: failed requests", float(limited["errors"]), 0.0),
        ]
    return found


def _translation_gates(translation: Figures) -> list[Gate]:
    found = []
    for name, sample in _translated(translation).items():
        found += [
            Gate(f"{name}: CPU µs added per request", sample["added_request_us"], 60.0),
            Gate(f"{name}: CPU µs added per chunk", sample["added_chunk_us"], 15.0),
        ]
    if translation:
        errors = sum(sample[kind]["errors"] for sample in translation.values() for kind in ("unary", "stream"))
        found.append(Gate("translation: failed requests", float(errors), 0.0))
    return found


_POLICY_BOUNDS = {  # CPU µs added
    "10,000 routes and keys": 10.0,
    "20 candidates, priority": 10.0,
    "limits of key, agent and team": 5.0,
    "4 KB, looked at": 25.0,
    "76 KB, looked at": 250.0,
}


def _policy_gates(policies: Figures) -> list[Gate]:
    if not policies:
        return []
    found = [Gate(f"{name}: CPU µs added", policies[name]["added_us"], most) for name, most in _POLICY_BOUNDS.items()]
    errors = sum(sample.get("errors", 0) for sample in policies.values())
    return [*found, Gate("policies: failed requests", float(errors), 0.0)]


def _overload_gates(overload: Figures) -> list[Gate]:
    if not overload:
        return []
    fair, load = overload["fair"], overload["open_loop"]
    return [
        Gate("p99 of other agents while one floods / without", fair["ratio"], 1.5),
        Gate("most there is / answered at four times that", 1 / load["goodput"], 1 / 0.9),
        Gate("overload: failed requests", float(fair["failed"] + load["failed"]), 0.0),
    ]


def _overload_lines(overload: Figures) -> list[str]:
    if not overload:
        return []
    fair, load = overload["fair"], overload["open_loop"]
    return [
        "",
        f"nineteen agents beside one that floods: p99 {fair['greedy_p99_ms']:g} ms (p50 {fair['greedy_p50_ms']:g}), "
        f"without it {fair['quiet_p99_ms']:g} ms (p50 {fair['quiet_p50_ms']:g}), ratio {fair['ratio']:.2f}",
        f"{load['offered_per_second']:g} requests/s offered: {load['per_second']:.0f} answered (p50 "
        f"{load['p50_ms']:.0f} ms), {load['refused_per_second']:.0f} refused, the most there is "
        f"{load['peak_per_second']:.0f}, ratio {load['goodput']:.2f}",
    ]


_AUDIT_US, _VERIFY_S = 5.0, 60.0  # of control per request; a million entries


def _audit_gates(audit: Figures) -> list[Gate]:
    if not audit:
        return []
    million_s = audit["verify_s"] * 1_000_000 / audit["entries"]
    return [
        Gate("audit: control's CPU µs per request", audit["settling"]["audit_us"], _AUDIT_US),
        Gate("audit: seconds to verify a million entries", million_s, _VERIFY_S),
    ]


def _audit_lines(audit: Figures) -> list[str]:
    if not audit:
        return []
    settling = audit["settling"]
    return [
        "",
        f"audit: {settling['audit_us']:g} of control's {settling['settle_us']:g} CPU µs per settled request",
        f"  {audit['sequencer_entries_per_s']:,} entries a second into the log",
        f"  {audit['entries']:,} entries: {audit['export_mb']} MB exported in {audit['export_s']:g} s, verified in "
        f"{audit['verify_s']:g} s",
        f"  slowest pages then: /v1/audit {audit['api_page_ms']:g} ms, admin list {audit['admin_list_ms']:g} ms, "
        f"entry {audit['admin_entry_ms']:g} ms, proof {audit['proof_ms']:g} ms",
    ]


def _policy_lines(policies: Figures) -> list[str]:
    if not policies:
        return []
    lines = ["", f"{'worker CPU µs per request':44}{'request':>10}{'added':>10}"]
    for name, sample in policies.items():
        if "cpu_us" in sample:
            added = f"{sample['added_us']:g}" if "added_us" in sample else ""
            lines.append(f"  {name:42}{sample['cpu_us']:>10g}{added:>10}")
    edited = policies["edited"]
    lines.append(f"  p99 µs at a fixed rate: {edited['quiet_p99_us']:g}, while edited {edited['edited_p99_us']:g}")
    stalls = f"{edited['quiet_stall_us']:g}, while edited {edited['edited_stall_us']:g}"
    lines.append(f"  longest stall of the loop, µs of its own work: {stalls}")
    return lines


def _console_gates(console: Figures) -> list[Gate]:
    if not console:
        return []
    slowest = max(page["cpu_ms"] for page in console["pages"].values())
    return [Gate("console: CPU ms of the slowest page", slowest, PAGE_MS)]


def _console_lines(console: Figures) -> list[str]:
    if not console:
        return []
    head = f"admin pages with {console['rows']:,} usage rows"
    lines = ["", f"{head:64}{'median ms':>12}{'slowest':>10}{'CPU':>8}{'KB':>8}"]
    for name, page in sorted(console["pages"].items(), key=lambda item: -item[1]["cpu_ms"]):
        missed = "  MISS" if page["median_ms"] > PAGE_MS else ""
        figures = f"{page['median_ms']:>12g}{page['slowest_ms']:>10g}{page['cpu_ms']:>8g}{page['kb']:>8g}"
        lines.append(f"  {name:62}{figures}{missed}")
    medians = [page["median_ms"] for page in console["pages"].values()]
    lines.append(f"  {len(medians)} pages, median {statistics.median(medians):g} ms, slowest {max(medians):g} ms")
    for what in ("median_ms", "cpu_ms"):
        over = [name for name, page in console["pages"].items() if page[what] > PAGE_MS]
        lines.append(f"  {what} over {PAGE_MS:g}: {', '.join(over) or 'none'}")
    lines.append(f"  counting a request into hourly and daily sums: {console['summed_us']:g} µs of control's CPU")
    return lines


def _translated(translation: Figures) -> Figures:
    """The cases that are compared with one that passes."""
    return {name: sample for name, sample in translation.items() if "added_request_us" in sample}


def table(figures: Figures) -> str:
    """All figures, one line each, targets side by side."""
    lines = [f"{'':44}{'direct':>10}{'nginx':>10}{'hoosh':>10}", ""] if "unary" in figures else []
    for connections, sample in figures.get("unary", {}).items():
        lines += [
            _line(f"unary, {connections} connections: CPU µs", sample, "cpu_us"),
            _line("  control's CPU µs", sample, "control_us"),
            _line("  requests/s", sample, "per_second"),
            _line("  p50 µs", sample, "p50_us"),
            _line("  p99 µs", sample, "p99_us"),
        ]
    for count, sample in figures.get("streams", {}).items():
        lines.append(_line(f"{count} streams: CPU µs per event", sample, "cpu_us"))
        lines.append(_line("  control's CPU µs per event", sample, "control_us"))
    if held := figures.get("held"):
        lines.append(_line(f"{next(iter(held.values()))['streams']} streams held: complete", held, "complete"))
        lines.append(_line("  CPU µs per event", held, "cpu_us"))
    if rate := figures.get("open_loop"):
        lines.append(_line("open loop 200/s: p50 µs", rate, "p50_us"))
        lines.append(_line("  p99 µs", rate, "p99_us"))
    lines.append("")
    if pages := figures.get("pages"):
        lines.append(
            f"p99 at 200/s while a page of {pages['page']['page_bytes'] / 1024:.0f} KB reloads "
            f"({pages['page']['p50_ms']:.0f} ms each): {pages['loaded']['p99_us']:.0f} µs, "
            f"without {pages['quiet']['p99_us']:.0f} µs"
        )
    for state in ("idle", "loaded"):
        if memory := figures.get(f"memory_{state}_mb"):
            lines.append(f"memory {state}, MB: " + ", ".join(f"{role} {size}" for role, size in memory.items()))
    if starts := figures.get("cold_start_s"):
        lines.append(f"cold start to the first answer, s: {', '.join(map(str, starts))}")
    lines += _budget_lines(figures.get("budgets", {}))
    lines += _translation_lines(figures.get("translation", {}))
    lines += _policy_lines(figures.get("policies", {}))
    lines += _overload_lines(figures.get("overload", {}))
    lines += _audit_lines(figures.get("audit", {}))
    lines += _console_lines(figures.get("console", {}))
    lines += ["", *(_verdict(gate) for gate in gates(figures))]
    return "\n".join(lines)


def _budget_lines(budgets: Figures) -> list[str]:
    lines = []
    for database, sample in budgets.items():
        lines += ["", f"{'budgets on ' + database:44}{'counted':>10}{'limited':>10}"]
        for title, name in (
            ("worker's CPU µs", "cpu_us"),
            ("control's CPU µs", "control_us"),
            ("database's CPU µs", "database_us"),
            ("requests/s", "per_second"),
        ):
            cells = [sample[kind].get(name, 0) for kind in ("counted", "limited")]
            lines.append(f"  {title:42}" + "".join(f"{cell:>10g}" for cell in cells))
        lines.append(
            f"  settle lag, s: {sample['lag_busy_s']:g} with a busy worker, {sample['lag_operator_s']:g} while a page "
            "reloads and an operator's transaction takes 3 s"
        )
    return lines


def _translation_lines(translation: Figures) -> list[str]:
    if not translation:
        return []
    lines = ["", f"{'worker CPU µs':44}{'request':>10}{'added':>10}{'chunk':>10}{'added':>10}{'streams/s':>11}"]
    for name, sample in translation.items():
        added = [sample.get("added_request_us"), sample.get("added_chunk_us")]
        cells = [sample["unary"]["cpu_us"], added[0], sample["stream"]["cpu_us"], added[1]]
        title = f"  {name}" if added[0] is not None else f"  {name}, passing"
        text = "".join(f"{'' if cell is None else f'{cell:g}':>10}" for cell in cells)
        lines.append(f"{title:44}{text}{sample['stream']['per_second']:>11g}")
    return lines


def history_rows(figures: Figures) -> list[str]:
    """Lines for the tables in HISTORY.md, of what was measured of them."""
    rows = [_gateway_row(figures)] if "unary" in figures else []
    for name, sample in _translated(figures.get("translation", {})).items():
        cells = [
            figures["date"],
            figures["commit"],
            name,
            f"{sample['unary']['cpu_us']:.1f}",
            f"{sample['added_request_us']:.1f}",
            f"{sample['stream']['cpu_us']:.1f}",
            f"{sample['added_chunk_us']:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _gateway_row(figures: Figures) -> str:
    unary = figures["unary"]["32"]
    most = figures["unary"][max(figures["unary"], key=int)]
    rate, memory, starts = figures.get("open_loop"), figures.get("memory_loaded_mb"), figures.get("cold_start_s")
    cells = [
        figures["date"],
        figures["commit"],
        f"{unary['hoosh']['cpu_us']:.1f} / {unary['nginx']['cpu_us']:.1f}",
        f"{unary['hoosh'].get('control_us', 0):.1f}",
        f"{most['hoosh']['cpu_us']:.1f}",
        f"{figures['streams']['64']['hoosh']['cpu_us']:.1f} / {figures['streams']['64']['nginx']['cpu_us']:.1f}",
        f"{(rate['hoosh']['p50_us'] - rate['direct']['p50_us']) / 1000:.2f}" if rate else "",
        f"{ratio:.1f}" if (ratio := _pages_ratio(figures.get("pages"))) else "",
        f"{memory['total']:.0f}" if memory else "",
        f"{min(starts):.2f}" if starts else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _line(title: str, sample: dict[str, dict[str, float]], name: str) -> str:
    cells = [sample.get(target, {}).get(name) for target in ("direct", "nginx", "hoosh")]
    return f"{title:44}" + "".join(f"{'' if cell is None else f'{cell:g}':>10}" for cell in cells)


def _verdict(gate: Gate) -> str:
    value = "not measured" if gate.value is None else f"{gate.value:.2f}"
    return f"{'ok  ' if gate.passed else 'MISS'} {gate.name}: {value} (at most {gate.limit:g})"


def _ratio(sample: dict[str, dict[str, float]], name: str) -> float:
    return sample["hoosh"][name] / sample["nginx"][name]


def _pages_ratio(pages: Figures | None) -> float | None:
    return float(pages["loaded"]["p99_us"] / max(1.0, pages["quiet"]["p99_us"])) if pages else None


def _errors(figures: Figures) -> float:
    samples = [*figures["unary"].values(), *figures["streams"].values(), figures.get("open_loop", {})]
    return float(sum(sample.get("hoosh", {}).get("errors", 0) for sample in samples))
