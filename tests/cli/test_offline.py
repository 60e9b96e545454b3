# SPDX-License-Identifier: Apache-2.0
"""``--offline``: whatever wants the network is stopped and told, here and in child processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fakes import dataset

REPOSITORY = Path(__file__).parents[2]

APP = """
import functools, json, sys
import brainseg_bids.cli.run as app
program = json.loads(sys.argv[1])
app.run = functools.partial(app.run, program=program)
from brainseg_bids.__main__ import main
sys.exit(main(sys.argv[2:]))
"""

GUARDED = """
import sys
sys.path.insert(0, {repository!r})
from tests.fakes.predict import main
from brainseg_bids import offline
sys.exit(main() if offline._hook["forbids"] else 3)
"""

TALKATIVE = """
import brainseg_bids, socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=0.2)
except Exception:
    pass  # as libraries do that send statistics
"""


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own: an audit hook is for good."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=REPOSITORY,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_app(root: Path, program, *before: str) -> subprocess.CompletedProcess:
    data = dataset.write_dataset(root / "data", "sub-01_T1w")
    model = dataset.write_bundle(root / "model")
    arguments = [str(data), str(root / "out"), "participant", "-w", str(root / "work")]
    arguments += ["--model", str(model), "--nprocs", "2", "--omp-nthreads", "1", "--offline"]
    command = [sys.executable, "-c", APP, json.dumps(list(program)), *arguments]
    return subprocess.run(
        [*before, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )


def test_a_real_run_wants_no_network_and_its_steps_are_under_the_rule(tmp_path):
    script = tmp_path / "guarded.py"
    script.write_text(GUARDED.format(repository=str(REPOSITORY)))
    # Where it may, in a world without any network but its own: C code cannot cheat there.
    apart = ["unshare", "--map-root-user", "--net"]
    allowed = shutil.which("unshare") and not subprocess.run([*apart, "true"]).returncode
    done = run_app(tmp_path, (sys.executable, str(script)), *(apart if allowed else []))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished successfully!" in done.stdout
    assert list((tmp_path / "out").rglob("sub-01_seg-brainseg_dseg.nii.gz"))


def test_a_child_that_wants_the_network_is_told_though_it_went_on(tmp_path):
    script = tmp_path / "talkative.py"
    script.write_text(TALKATIVE)
    done = python(
        "import subprocess, sys\n"
        "from brainseg_bids.offline import run_offline\n"
        "command = [sys.executable, sys.argv[1]]\n"
        "sys.exit(run_offline(lambda: subprocess.run(command, check=True).returncode))",
        str(script),
        PYTHONPATH=str(REPOSITORY),
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines() == [
        "brainseg: ERROR: --offline: __main__ (talkative.py, line 4) wanted to reach 192.0.2.1:80",
        "brainseg: ERROR: --offline: 1 connection was tried and stopped",
    ]


WAYS_OUT = {
    "socket.create_connection(('192.0.2.1', 443), timeout=0.2)": "192.0.2.1:443",
    "socket.socket().connect_ex(('192.0.2.1', 1))": "192.0.2.1:1",
    "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))": "2001:db8::1:80",
    "socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))": "192.0.2.1:53",
    "socket.getaddrinfo('example.invalid', 80)": "example.invalid:80",
    "socket.gethostbyname('example.invalid')": "example.invalid",
    "urllib.request.urlopen('http://example.invalid/x')": "example.invalid:80",
    "requests.get('http://example.invalid/x')": "example.invalid:80",
}


def test_every_way_out_is_stopped_before_anything_leaves():
    done = python(
        "import json, requests, socket, sys, urllib.request\n"
        "from brainseg_bids.offline import NetworkForbidden, run_offline\n"
        "def work():\n"
        "    for call in json.loads(sys.argv[1]):\n"
        "        try:\n"
        "            eval(call)\n"
        "        except NetworkForbidden as error:\n"
        "            print(error)\n"
        "run_offline(work)",
        json.dumps(list(WAYS_OUT)),
    )
    who = "--offline: __main__ (<string>, line 1) wanted to reach "
    assert done.stdout.splitlines() == [who + where for where in WAYS_OUT.values()], done.stderr


def test_what_stays_on_this_machine_is_let_pass():
    done = python(
        "import socket\n"
        "from brainseg_bids.offline import run_offline\n"
        "def work():\n"
        "    for family, address in ((socket.AF_INET, ('127.0.0.1', 0)), (socket.AF_UNIX, '')):\n"
        "        server = socket.socket(family)\n"
        "        server.bind(address)\n"
        "        server.listen()\n"
        "        socket.socket(family).connect(server.getsockname())\n"
        "    socket.create_connection(('localhost', 1), timeout=1)\n"
        "    return 0\n"
        "run_offline(work)"
    )
    assert "ConnectionRefusedError" in done.stderr  # by this machine, not by the guard


def test_an_attempt_that_was_swallowed_fails_a_run_that_was_fine():
    code = (
        "import socket, sys\n"
        "from brainseg_bids.offline import run_offline\n"
        "def work():\n"
        "    try:\n"
        "        socket.getaddrinfo('example.invalid', 80)\n"
        "    except Exception:\n"
        "        return 0\n"
        "sys.exit(run_offline(work))"
    )
    done = python(code)
    assert done.returncode == 1
    assert done.stderr.count("example.invalid:80") == 1


def test_a_child_process_inherits_the_rule_by_a_variable():
    attempt = "import brainseg_bids, socket; socket.getaddrinfo('example.invalid', 80)"
    done = python(attempt, BRAINSEG_OFFLINE="1")
    assert done.stderr.startswith("brainseg: ERROR: --offline: __main__")
    assert done.returncode == 1
    free = "import brainseg_bids, sys; assert 'brainseg_bids.offline' not in sys.modules"
    assert python(free, BRAINSEG_OFFLINE="0").returncode == 0


def test_workers_of_nipypes_pool_are_under_the_rule():
    done = python(
        "import multiprocessing, socket\n"
        "from brainseg_bids.offline import run_offline\n"
        "def work():\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        "    context.set_forkserver_preload(['brainseg_bids'])\n"
        "    with context.Pool(1) as pool:\n"
        "        pool.apply(socket.gethostbyname, ['example.invalid'])\n"
        "if __name__ == '__main__':\n"
        "    run_offline(work)"
    )
    assert "NetworkForbidden: --offline: multiprocessing.pool" in done.stderr


def test_fetch_refuses_where_the_network_is_forbidden(tmp_path):
    done = python(
        "import sys; from brainseg_bids.__main__ import main; sys.exit(main(sys.argv[1:]))",
        *("fetch", "ultracortex", str(tmp_path / "x")),
        BRAINSEG_OFFLINE="1",
    )
    assert done.returncode == 2
    assert "network is forbidden" in done.stderr
