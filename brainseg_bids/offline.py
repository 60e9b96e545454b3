# SPDX-License-Identifier: Apache-2.0
"""``--offline``: connections to other machines are stopped before they are made, and told.

Python raises an audit event (PEP 578) for each connection, each packet and each look-up of a
name. The hook installed here lets pass what stays on this machine: Unix sockets, and numeric
loopback addresses and ``localhost``, which processes of one training run talk by. All else
raises `NetworkForbidden` before anything leaves. The variable ``BRAINSEG_OFFLINE`` hands the
rule on to child processes: whichever of them imports this package installs the hook, too. Its
value is the file where attempts are noted, so that one that a library has swallowed is told.

Not seen: connections made by C libraries and by programs in other languages (external tools).
For those there is the operating system's own: ``unshare --net``, or a container without network.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from brainseg_bids.exit_codes import FAILED
from brainseg_bids.lifetime import at_end

VARIABLE = "BRAINSEG_OFFLINE"
"""Exit code of a run that was fine but for the attempt."""

WIRING = frozenset(
    {"aiohttp", "asyncio", "concurrent", "http", "httpx", "requests", "socket", "ssl", "urllib"}
    | {"threading", "urllib3"}
)
"""Modules that connect on behalf of others."""

_hook = {"installed": False, "forbids": False}
"""A hook cannot be taken out again: it is installed once per process, and told when to let be."""


class NetworkForbidden(RuntimeError):
    """Something wanted the network under ``--offline``.

    No `OSError`: libraries take those for a bad connection, wait, and try again.
    """


def is_on() -> bool:
    """Whether this process was told to stay off the network."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def forbid_network() -> None:
    """Stop connections of this process from now on."""
    _hook["forbids"] = True
    if not _hook["installed"]:
        _hook["installed"] = True
        sys.addaudithook(_guard)


def run_offline(work: Callable[[], int]) -> int:
    """Do something without network.

    Parameters
    ----------
    work : callable
        Returns an exit code.

    Returns
    -------
    int
        That code; 1 instead of 0 if it, or a process that it has started, wanted the network.
    """
    handle, name = tempfile.mkstemp(prefix="brainseg_offline_", suffix=".txt")
    os.close(handle)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    forbid_network()
    try:
        with at_end(lambda _: Path(name).unlink(missing_ok=True)):
            code = work()
        attempts = list(dict.fromkeys(Path(name).read_text(encoding="utf-8").splitlines()))
    finally:
        if before is None:
            del os.environ[VARIABLE]
            _hook["forbids"] = False
        else:
            os.environ[VARIABLE] = before
        Path(name).unlink(missing_ok=True)
    if not attempts:
        return code
    for attempt in attempts[:5]:
        print(f"brainseg: ERROR: {attempt}", file=sys.stderr)
    number = f"{len(attempts)} connections were" if len(attempts) > 1 else "1 connection was"
    print(f"brainseg: ERROR: --offline: {number} tried and stopped", file=sys.stderr)
    return code or FAILED


def is_local(host: object) -> bool:
    """Whether a host is this machine without asking anybody.

    >>> [is_local(host) for host in ("127.0.0.1", "::1", "localhost", b"", None)]
    [True, True, True, True, True]
    >>> [is_local(host) for host in ("openneuro.org", "10.0.0.1", "8.8.8.8", "0.0.0.0")]
    [False, False, False, False]
    """
    import ipaddress  # late: not needed in a run that is as it should be

    if isinstance(host, bytes | bytearray):
        host = bytes(host).decode("ascii", "replace")
    if not host or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _guard(event: str, arguments: tuple) -> None:
    if not event.startswith("socket.") or not _hook["forbids"]:
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        connection, address = arguments[0], arguments[1]
        if address is None or not _leaves(connection.family):
            return
        host, port = (*address, "")[:2] if isinstance(address, tuple) else (address, "")
    elif event == "socket.getaddrinfo":
        host, port = arguments[0], arguments[1]
    elif event in ("socket.gethostbyname", "socket.gethostbyaddr"):
        host, port = arguments[0], ""
    elif event == "socket.getnameinfo":
        host, port = arguments[0][:2]
    else:  # binding, closing, the machine's own name: nothing leaves
        return
    if is_local(host):
        return
    where = f"{host}:{port}" if port not in ("", None) else f"{host}"
    line = f"--offline: {_who()} wanted to reach {where}"
    _note(line)
    raise NetworkForbidden(line)


def _leaves(family: int) -> bool:
    """Whether sockets of a family can reach another machine."""
    import socket  # is imported already, or there would be no event

    stay = {getattr(socket, name, None) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG")}
    return family not in stay


def _who() -> str:
    """The code that wanted it: the innermost that is no mere means of connecting."""
    frame = sys._getframe(2)
    first = frame
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in WIRING and not module.startswith("importlib"):
            break
        frame = frame.f_back
    frame = frame or first
    name = frame.f_globals.get("__name__", "?")
    return f"{name} ({os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno})"


def _note(line: str) -> None:
    """Where whoever has started all this will look; and on the console."""
    note = os.environ.get(VARIABLE, "")
    if os.path.isabs(note):
        try:
            handle = os.open(note, os.O_WRONLY | os.O_APPEND)
        except OSError:  # of a machine that does not see that file
            handle = None
        if handle is not None:
            os.write(handle, f"{line}\n".encode())
            os.close(handle)
            return
    os.write(2, f"brainseg: ERROR: {line}\n".encode())
