# SPDX-License-Identifier: Apache-2.0
"""``brainseg`` and ``python -m brainseg_bids``: argv in, exit code out."""

from __future__ import annotations

import signal
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the app.

    Returns
    -------
    int
        0 done; 1 some image could not be done; 2 the command line or its data cannot be used;
        70 the workflow could not be built; 75 training was stopped and saved; 126 and 127 a tool's
        licence or a tool is missing; 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        from brainseg_bids.cli.doctor import main as doctor

        return doctor(argv[1:])
    if argv[:1] == ["fetch"]:
        from brainseg_bids.cli.fetch import main as fetch

        return fetch(argv[1:])
    from brainseg_bids.cli.parser import parse

    settings = parse(argv)

    def work() -> int:
        from brainseg_bids.cli.run import run  # late: `--help` shall not wait for it

        return run(settings)

    # What a batch system sends at the end of its time is to end all that was started, too.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if settings.offline:
            from brainseg_bids.offline import run_offline

            return run_offline(work)
        return work()
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
