# SPDX-License-Identifier: Apache-2.0
"""HTTP that bears busy servers and bad lines, and says what is wrong in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import requests
import urllib3
from requests.adapters import HTTPAdapter

from brainseg_bids import __version__
from brainseg_bids.fetch.known import FetchError

BUSY = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Patience:
    """How long a bad connection is borne.

    Parameters
    ----------
    attempts : int
        In a row without a byte more than before.
    backoff_s, longest_wait_s : float
        First and longest pause; each is twice the one before. A server that asks for a longer
        one does not get it.
    connect_s, read_s : float
        Silence after which a connection is given up.
    """

    attempts: int = 5
    backoff_s: float = 0.5
    longest_wait_s: float = 30.0
    connect_s: float = 10.0
    read_s: float = 60.0


class _Retry(urllib3.Retry):
    """urllib3's, but a server cannot ask for hours."""

    def get_retry_after(self, response):
        asked_s = super().get_retry_after(response)
        return None if asked_s is None else min(asked_s, self.backoff_max)


class _Adapter(HTTPAdapter):
    """Gives a connection up after some silence; requests would wait for ever."""

    def __init__(self, silence_s: tuple[float, float], **options) -> None:
        self.silence_s = silence_s
        super().__init__(**options)

    def send(self, request, timeout=None, **options):
        return super().send(request, timeout=timeout or self.silence_s, **options)


def open_session(patience: Patience, jobs: int = 4) -> requests.Session:
    """A session that waits for busy servers, for use in ``jobs`` threads."""
    retry = _Retry(
        total=patience.attempts,
        connect=2,  # a name that is not known now will not be in a second
        read=patience.attempts,
        status_forcelist=BUSY,
        backoff_factor=patience.backoff_s,
        backoff_max=patience.longest_wait_s,
        allowed_methods=["GET"],
        raise_on_status=False,
    )
    session = requests.Session()
    session.headers["User-Agent"] = f"brainseg-bids/{__version__}"
    session.headers["Accept-Encoding"] = "identity"  # sizes and checksums are of the plain bytes
    silence_s = (patience.connect_s, patience.read_s)
    for scheme in ("https://", "http://"):
        session.mount(scheme, _Adapter(silence_s, max_retries=retry, pool_maxsize=jobs))
    return session


def get_text(session: requests.Session, url: str, query: dict | None = None) -> str:
    """A small text.

    Raises
    ------
    FetchError
        In one line, if there is none to be had.
    """
    with failures_in_one_line(url):
        answer = session.get(url, params=query)
    check_status(answer, url)
    return answer.content.decode("utf-8", "replace")


@contextlib.contextmanager
def failures_in_one_line(url: str) -> Iterator[None]:
    """Failures of a connection in one line."""
    try:
        yield
    except requests.RequestException as error:
        raise FetchError(
            f"{url}: {reason(error)}. Run the same command again to go on."
        ) from error


def reason(error: Exception) -> str:
    """What is wrong with a connection, in a few words.

    >>> reason(requests.ConnectionError("NameResolutionError: Name or service not known"))
    'no network, or no such server (its name is not known)'
    >>> reason(requests.ReadTimeout("HTTPConnectionPool: Read timed out. (read timeout=60)"))
    'the server does not answer'
    """
    text = str(error)
    for words, meaning in (
        ("NameResolution", "no network, or no such server (its name is not known)"),
        ("Network is unreachable", "no network"),
        ("Connection refused", "the server refuses the connection"),
        ("CERTIFICATE", "the server's certificate is not valid (is there a proxy between?)"),
        ("ProxyError", "the proxy does not answer"),
        ("timed out", "the server does not answer"),
        ("IncompleteRead", "the connection was cut again and again"),
        ("Connection aborted", "the connection was cut again and again"),
        ("Connection reset", "the connection was cut again and again"),
    ):
        if words in text:
            return meaning
    return f"the connection failed ({type(error).__name__})"


def check_status(answer: requests.Response, url: str) -> None:
    """Refuse an answer that is none, in one line that says what it means.

    Raises
    ------
    FetchError
    """
    status = answer.status_code
    if status < 400:
        return
    if status in (404, 410):
        raise FetchError(f"{url}: it is not there (HTTP {status}). Is the name right?")
    if status in (401, 403):
        raise FetchError(f"{url}: the server does not give it to everybody (HTTP {status}).")
    if status in BUSY:
        raise FetchError(
            f"{url}: the server is busy or broken (HTTP {status}). "
            "Run the same command again later to go on."
        )
    raise FetchError(f"{url}: the server says HTTP {status} {answer.reason}.")
