# SPDX-License-Identifier: Apache-2.0
"""brainseg-bids: whole-head segmentation models made for *your* MR images, as a BIDS App.

Inside (arrays, tables, numbers)    ``anatomy`` → ``evaluation`` · ``nets`` →
                                    ``synth`` · ``inference`` → ``training``
The door for images                 ``images``
Outside (files, programs, pages)    ``bids`` · ``reports`` · ``interfaces`` · ``programs`` ·
                                    ``stages`` · ``settings`` · ``hpc`` · ``cli``
The outside calls the inside, never the reverse (``tests/test_layers.py``).
"""

import logging
import os

# nipype asks a server for its newest version at the first Interface() of every process;
# a node behind a packet-dropping firewall would wait five seconds each time.
os.environ.setdefault("NO_ET", "1")
os.environ.setdefault("NIPYPE_NO_ET", "1")
# Threads that wait for others would else do so at full speed, which on a machine with other work
# costs several times the time of the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch and monai ask for the user's name; a container may run under a uid that has none.
os.environ.setdefault("USER", "brainseg")
# Nor has it a home, and pybids asks for one; like Docker we say it is the root folder.
if os.path.expanduser("~") == "~":
    os.environ["HOME"] = os.sep

# Where the home cannot be written to, matplotlib makes itself a folder in TMPDIR. That is what we
# want in a container, and no reason for two long lines of each process.
logging.getLogger("matplotlib").addFilter(
    lambda record: not str(record.msg).startswith(("mkdir -p failed", "Matplotlib created a temp"))
)

if "BRAINSEG_PARENT" in os.environ:  # a child process of this app ends with it
    from brainseg_bids.lifetime import end_with_parent

    end_with_parent()

if os.environ.get("BRAINSEG_OFFLINE", "") not in ("", "0"):  # of --offline, for child processes
    from brainseg_bids.offline import forbid_network

    forbid_network()

__version__ = "0.1.0"
