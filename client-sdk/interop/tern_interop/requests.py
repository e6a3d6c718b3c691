"""What goes out on one connection: frames by lane, in order, and which requests are open."""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, Dict, NamedTuple, Optional, Tuple

from .frames import Lane, Tables, lane_of
from .proto import wire

IN_FLIGHT_LIMIT = 16
"""Until `Welcome.limits.in_flight` says otherwise."""

Answer = Callable[[int, wire.Frame, Tables], bool]
"""Called with the time in ms, the answering frame (an Error too) and the references of the stream that it came on; says
whether this was the last answer."""


class _Waiting(NamedTuple):
    frame: wire.Frame
    answer: Optional[Answer]


class Requests:
    """Frames wait here while as many requests are open as the server takes."""

    def __init__(self) -> None:
        self.in_flight_limit = IN_FLIGHT_LIMIT
        self._open: Dict[int, Answer] = {}
        self._queues: Dict[Lane, Deque[_Waiting]] = {lane: deque() for lane in Lane}
        self._req = 0

    def tell(self, frame: wire.Frame) -> None:
        """Sends what nobody answers."""
        self._queues[lane_of(frame)].append(_Waiting(frame, None))

    def ask(self, frame: wire.Frame, answer: Answer) -> None:
        """Sends a request; `frame.req` is given here."""
        self._queues[lane_of(frame)].append(_Waiting(frame, answer))

    def poll_output(self) -> Optional[Tuple[Lane, wire.Frame]]:
        for lane, queue in self._queues.items():
            if not queue or (queue[0].answer and len(self._open) >= self.in_flight_limit):
                continue
            waiting = queue.popleft()
            if waiting.answer:
                # Never 0; 32 bits outlast any connection.
                self._req += 1
                waiting.frame.req = self._req
                self._open[self._req] = waiting.answer
            return lane, waiting.frame
        return None

    def handle_answer(self, now_ms: int, frame: wire.Frame, tables: Tables) -> bool:
        """False where nobody asked."""
        answer = self._open.get(frame.req)
        if answer is None:
            return False
        if answer(now_ms, frame, tables) or frame.WhichOneof("body") == "error":
            self._open.pop(frame.req, None)
        return True
