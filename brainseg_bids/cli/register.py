# SPDX-License-Identifier: Apache-2.0
"""Former place of `brainseg_bids.programs.register`, which scripts may call."""

from __future__ import annotations

from brainseg_bids.programs.register import main

if __name__ == "__main__":
    raise SystemExit(main())
