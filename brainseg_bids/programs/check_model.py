# SPDX-License-Identifier: Apache-2.0
"""Whether the network of a model can be built and its weights fit, in a process of its own.

``python -m brainseg_bids.programs.check_model FOLDER`` imports PyTorch, which the app
itself does not keep in memory for this.
"""

from __future__ import annotations

import sys

from brainseg_bids.exit_codes import DONE, FAILED
from brainseg_bids.nets.bundle import BundleError, ModelBundle


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 after one line on stderr that says what is wrong."""
    (folder,) = sys.argv[1:] if argv is None else argv
    try:
        ModelBundle.read(folder).check_network()
    except (BundleError, ImportError) as error:
        print(error, file=sys.stderr)
        return FAILED
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
