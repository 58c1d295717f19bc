"""Runs the suites named on the command line, or all."""
import asyncio, importlib, sys, time, traceback

from report import Report

SUITES = ["isolation.tests", "isolation.doors", "contract.tests", "talk.tests", "reload.tests", "runtime.tests"]


async def main():
    wanted = [a for a in sys.argv[1:] if not a.startswith("-")] or SUITES
    report = Report("-v" in sys.argv)
    for suite in wanted:
        module, function = suite.split(".")
        begun = time.time()
        try:
            await getattr(importlib.import_module(module), function)(report)
        except Exception:
            report.check(suite, False, traceback.format_exc())
        print(f"{suite}: {time.time() - begun:.1f} s", flush=True)
    report.close()


asyncio.run(main())
