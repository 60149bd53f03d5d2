"""How many calls a server is asked at a time: as many as it answers, which few servers report and all of them show."""

from __future__ import annotations

import logging
import threading
import time

from confcascade.errors import status_of

__all__ = ["Concurrency", "timed_out"]

_log = logging.getLogger("confcascade")

_FIRST = 4  # calls at a time, to a server that is not known yet
_LONG = 0.5  # of a time-out: an answer that took longer has waited in the server's queue, or is about to time out
_TIMED_OUT = frozenset({"APITimeoutError", "ReadTimeout", "ConnectTimeout", "PoolTimeout", "Timeout"})
_STATUSES = frozenset({408, 504, 524})  # a proxy's time-outs


def timed_out(error: Exception) -> bool:
    """Whether a call failed because no answer came in time, whichever client says so."""
    return isinstance(error, TimeoutError) or type(error).__name__ in _TIMED_OUT or status_of(error) in _STATUSES


class Concurrency:
    """Lets calls to one model through, so many at a time that its server answers them in time.

    As TCP does it: one more after each answer until the server shows that it has enough, then half, and from there one
    more after as many answers as there are calls at a time. A server has enough when a call times out or is refused for
    now, or when an answer takes more than half of the time-out. For many threads.

    Args:
        model: Its name, for the log.
        most: Never more than this.
        slots: How many answers the server writes at a time, if it reports that: then never more than these.
        timeout_s: After which the client gives a call up; None if unknown.

    Attributes:
        limit: Most calls at a time, now.
    """

    def __init__(self, model: str, most: int, *, slots: int | None = None, timeout_s: float | None = None) -> None:
        self._model = model
        self._most = max(1, most if slots is None else min(most, slots))
        self._long_s = None if timeout_s is None else _LONG * timeout_s
        self._timeout_s = timeout_s
        self.limit = float(self._most if slots is not None else min(_FIRST, self._most))
        self._free = threading.Condition()
        self._under_way = 0
        self._grown = False  # whether it has had enough once
        self._halved_at = -float("inf")
        self._said = False
        if slots is not None:
            _log.info("The server of model '%s' reports %d slots: so many calls at a time.", model, slots)

    def wait(self, stop: threading.Event) -> bool:
        """Wait for a turn; False if collecting was stopped instead. Whoever has one gives it back with `over`."""
        with self._free:
            while self._under_way >= int(self.limit):
                if stop.is_set():
                    return False
                self._free.wait(0.1)  # `stop` notifies nobody
            self._under_way += 1
            return True

    def over(self, begun: float, error: Exception | None = None, *, refused: bool = False) -> None:
        """A call has ended.

        Args:
            begun: When it began, by `time.monotonic`.
            error: With which, if any.
            refused: Whether that is a server that has too much to do for now.
        """
        late = error is not None and timed_out(error)
        took = time.monotonic() - begun
        queued = error is None and self._long_s is not None and took > self._long_s
        with self._free:
            self._under_way -= 1
            alone = int(self.limit) == 1
            if late or refused or queued:
                self._grown = True
                if begun >= self._halved_at:  # a call from before says nothing of the new number
                    self.limit = max(1.0, self.limit / 2)
                    self._halved_at = time.monotonic()
            elif error is None:
                self.limit = min(float(self._most), self.limit + (1 / int(self.limit) if self._grown else 1))
            self._free.notify_all()
        if late:
            self._say(alone)

    def _say(self, alone: bool) -> None:
        with self._free:
            said, self._said = self._said, True
        if said:
            return
        after = "in time" if self._timeout_s is None else f"within {self._timeout_s:g} s (`timeout_s`)"
        if alone:
            advice = "It is asked one at a time already: give it a longer `timeout_s`, or answers fewer `max_tokens`."
        else:
            advice = (
                f"From now on it is asked {int(self.limit)} at a time, and more again as it answers. If calls still "
                "time out, give it a longer `timeout_s`, answers fewer `max_tokens`, or set `max_concurrency`."
            )
        _log.warning("Model '%s' did not answer %s, and is asked again. %s", self._model, after, advice)
