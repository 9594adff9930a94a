"""`make lossless`: check the delivery of long answers on each platform and print a table."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from tests.adapters.lossless_cases import cases
from tests.adapters.lossless_runs import (
    GROWING_REPLIES,
    NOT_BALANCED,
    NOT_EXACT,
    NOT_LANDED,
    NOT_VISIBLE,
    TWICE,
    Delivered,
    Load,
    Times,
    ages,
    deliver,
    load,
    placeholders,
)
from tests.harness.platform_bench import FORMS, PROFILES

# Limits in milliseconds.
_PLACEHOLDER = 300.0
_LATENESS = 50.0
# Seconds for the call itself, in addition to the edit intervals.
_CALL = 0.1


@dataclass(slots=True)
class Report:
    """One platform's column of the table, and its passed and failed checks."""

    platform: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)

    def check(self, is_passed: bool, what: str) -> None:
        if is_passed:
            self.passed += 1
        else:
            self.failures.append(f"{self.platform}: {what}")


async def measure(name: str, numbers: Sequence[int], seed: int, *, with_times: bool) -> Report:
    report = Report(name)

    def progress(done: int) -> None:
        if done % 25 == 0 or done == len(numbers):
            _print_progress(f"{name}: {done} of {len(numbers)} answers")

    report_delivered(report, await deliver(name, cases(numbers, seed), seed, progress), seed)
    if with_times and name in PROFILES:
        _print_progress(f"{name}: from a mention to the placeholder")
        _report_placeholders(report, await placeholders(name))
        _print_progress(f"{name}: the age of text that flows")
        shared = 60 * GROWING_REPLIES / PROFILES[name].edits_per_minute
        _report_ages(report, await ages(name), max(PROFILES[name].edit_interval, shared))
        _print_progress(f"{name}: 200 mentions in 50 channels at once")
        _report_load(report, await load(name))
    return report


def report_delivered(report: Report, delivered: Delivered, seed: int) -> None:
    for number, faults in sorted(delivered.faults.items()):
        again = f"python -m tests.adapters.lossless {report.platform} --seed {seed} --case {number}"
        report.failures.append(f"{report.platform}, case {number}: {'; '.join(faults)}  ({again})")
    report.passed += delivered.cases - len(delivered.faults)
    early = [each for each in delivered.violations if "Retry-After" in each]
    long = [each for each in delivered.violations if _is_too_long(each)]
    others = [each for each in delivered.violations if each not in early and each not in long]
    report.check(not early, f"{len(early)} calls before Retry-After: {early[:3]}")
    report.check(not long, f"{len(long)} texts over the limit: {long[:3]}")
    report.check(not others, f"{len(others)} calls that the platform forbids: {others[:3]}")
    injected = delivered.injected
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(injected.failed.items()))
    report.rows |= {
        "answers": f"{delivered.cases}",
        "characters": f"{delivered.characters:,}",
        "messages": f"{delivered.messages:,}",
        "calls": f"{injected.calls:,}",
        "refused": f"{injected.failed.total():,}",
        "by kind": kinds,
        "every character exactly once": f"{delivered.without(NOT_EXACT)} of {delivered.cases}",
        "visible text as markdown-it reads it": f"{delivered.without(NOT_VISIBLE)} of {delivered.cases}",
        "balanced fences in every message": f"{delivered.without(NOT_BALANCED)} of {delivered.cases}",
        "last edit landed": f"{delivered.without(NOT_LANDED)} of {delivered.cases}",
        "said twice": f"{delivered.cases - delivered.without(TWICE)}",
        "“…” left behind": f"{delivered.left_behind}",
        "streams started": f"{delivered.streams}",
        "messages over the limit": f"{len(long)}",
        "calls before Retry-After": f"{len(early)}",
        "other calls that are forbidden": f"{len(others)}",
        "seconds for all of it": f"{delivered.seconds:.0f}",
    }


def _report_placeholders(report: Report, times: Times) -> None:
    p50, p99 = (1e3 * times.percentile(percent) for percent in (50, 99))
    report.rows[f"mention to placeholder, p50 / p99 of {len(times.values)}"] = f"{p50:.0f} / {p99:.0f} ms"
    report.check(p99 < _PLACEHOLDER, f"the placeholder took {p99:.0f} ms (p99), the limit is {_PLACEHOLDER:.0f}")


def _report_ages(report: Report, times: Times, interval: float) -> None:
    p50, oldest = (times.percentile(percent) for percent in (50, 100))
    report.rows["edit interval"] = f"{interval:.1f} s"
    report.rows["age of flowing text, p50 / oldest"] = f"{p50:.2f} / {oldest:.2f} s"
    allowed = 2 * interval + _CALL
    report.check(oldest <= allowed, f"text was {oldest:.2f} s old, the limit is {allowed:.2f} s")


def _report_load(report: Report, measured: Load) -> None:
    idle, busy = (1e3 * times.percentile(99) for times in (measured.idle, measured.busy))
    what = f"{measured.mentions} mentions at once"
    once = "all" if not measured.faults else f"all but for {len(measured.faults)}"
    report.rows[f"{what}: answered once"] = once
    report.rows[f"{what}: seconds"] = f"{measured.seconds:.0f}"
    report.rows["lateness of the event loop, p99: idle / busy"] = f"{idle:.1f} / {busy:.1f} ms"
    report.check(not measured.faults, f"{what}: {measured.faults[:3]}")
    report.check(busy - idle <= _LATENESS, f"the event loop lagged {busy - idle:.0f} ms more than when idle (p99)")


def _is_too_long(violation: str) -> bool:
    return any(words in violation for words in ("over the limit", "a text of", "too_long", "entities"))


def table(reports: Sequence[Report]) -> str:
    """Return a Markdown table with a column per platform."""
    labels = list(dict.fromkeys(label for report in reports for label in report.rows))
    lines = [["", *(report.platform for report in reports)], ["---", *("---:" for _ in reports)]]
    lines += [[label, *(report.rows.get(label, "") for report in reports)] for label in labels]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adapters.lossless", description=__doc__)
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=f"{', '.join(PROFILES | FORMS)}; default: all")
    parser.add_argument("--cases", type=int, default=300, help="answers per platform (default: 300)")
    parser.add_argument("--seed", type=int, default=4, help="seed of the answers (default: 4)")
    parser.add_argument("--case", type=int, help="deliver only this answer and measure no latencies")
    options = parser.parse_args()
    if unknown := set(options.platforms) - set(PROFILES | FORMS):
        parser.error(f"unknown platform: {', '.join(sorted(unknown))}")
    # Injected faults are logged as warnings; only errors are unexpected.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    numbers = range(options.cases) if options.case is None else [options.case]
    reports = [
        asyncio.run(measure(name, numbers, options.seed, with_times=options.case is None))
        for name in options.platforms or PROFILES | FORMS
    ]
    _print_line(table(reports))
    failures = [failure for report in reports for failure in report.failures]
    for failure in failures:
        _print_line(f"FAILED {failure}")
    _print_line(f"{sum(report.passed for report in reports)} passed, {len(failures)} failed")
    return 1 if failures else 0


def _print_line(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # the output of a command


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201  # its progress


if __name__ == "__main__":
    sys.exit(main())
