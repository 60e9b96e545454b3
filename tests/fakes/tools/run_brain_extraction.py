# SPDX-License-Identifier: Apache-2.0
"""Stand-in for ``run_brain_extraction`` of GOUHFI."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from run_gouhfi import conform

if __name__ == "__main__":
    conform(sys.argv[1:])
