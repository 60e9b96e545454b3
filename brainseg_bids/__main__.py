# SPDX-License-Identifier: Apache-2.0
"""``brainseg`` and ``python -m brainseg_bids``: argv in, exit code out."""

from __future__ import annotations

import sys

from brainseg_bids.exit_codes import FAILED
from brainseg_bids.lifetime import ended_by_signals
from brainseg_bids.standard_streams import is_lost, protected


def main(argv: list[str] | None = None) -> int:
    """Run the app.

    Returns
    -------
    int
        Exit code; `brainseg_bids.exit_codes` says what each means.
    """
    argv = sys.argv[1:] if argv is None else argv
    with ended_by_signals(), protected() as output:
        try:
            code = _run(argv)
        except SystemExit:  # of --help and the like
            output.flush()
            if not is_lost(output):
                raise
            code = FAILED
        output.flush()
        # Of these the output is all there is.
        return FAILED if argv[:1] in (["doctor"], ["status"]) and is_lost(output) else code


def _run(argv: list[str]) -> int:
    if argv[:1] == ["doctor"]:
        from brainseg_bids.cli.doctor import main as doctor

        return doctor(argv[1:])
    if argv[:1] == ["fetch"]:
        from brainseg_bids.cli.fetch import main as fetch

        return fetch(argv[1:])
    if argv[:1] == ["status"]:
        from brainseg_bids.cli.status import main as status

        return status(argv[1:])
    from brainseg_bids.cli.parser import parse

    settings = parse(argv)

    def work() -> int:
        from brainseg_bids.cli.run import run  # late: `--help` shall not wait for it

        return run(settings)

    if settings.offline:
        from brainseg_bids.offline import run_offline

        return run_offline(work)
    return work()


if __name__ == "__main__":
    sys.exit(main())
