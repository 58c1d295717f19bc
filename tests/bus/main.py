"""Runs the suites named on the command line, or all."""
import asyncio, importlib, sys, time, traceback

from harness import TooLate
from report import Report

SUITES = ["isolation.tests", "isolation.doors", "contract.tests", "talk.tests", "reload.tests", "runtime.tests", "mutation.tests"]

# Even what comes too late is a failure here.
PROTECTIONS = {"isolation", "mutation"}


async def run(suite, verbose):
    """Runs one suite; gives what it found, and whether nothing but a wait went wrong."""
    module, function = suite.split(".")
    begun, report, late = time.time(), Report(verbose), False
    try:
        await getattr(importlib.import_module(module), function)(report)
    except Exception as fault:
        late = isinstance(fault, TooLate) and not report.failed and module not in PROTECTIONS
        report.check(suite, False, traceback.format_exc())
    print(f"{suite}: {time.time() - begun:.1f} s", flush=True)
    return report, late


async def main():
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or SUITES
    verbose = "-v" in sys.argv
    whole = Report(verbose)
    for suite in wanted:
        report, late = await run(suite, verbose)
        if late:
            report, _ = await run(suite, verbose)
            if not report.failed:
                print(f"flaky: {suite}: passed at the second try", flush=True)
        whole.add(report)
    whole.close()


asyncio.run(main())
