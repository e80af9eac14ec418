"""Who is next: pictures wait in the order of their arrival, and clients take turns."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imprompt.serving.engine.pictures import PictureRequest


class FairQueue:
    """Pictures that wait, by client; one client's many pictures do not delay another's one."""

    def __init__(self) -> None:
        self._clients: dict[str, deque[PictureRequest]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def __iter__(self) -> "Iterator[PictureRequest]":
        """Yield the pictures in the order in which they will be taken."""
        rounds = [list(waiting) for waiting in self._clients.values()]
        for place in range(max(map(len, rounds), default=0)):
            yield from (waiting[place] for waiting in rounds if place < len(waiting))

    def add(self, request: "PictureRequest") -> None:
        """Append a picture."""
        self._clients.setdefault(request.client, deque()).append(request)

    def take(self) -> "PictureRequest":
        """Remove and return the next picture; its client is behind all others then.

        Raises:
            StopIteration: none waits
        """
        client = next(iter(self._clients))
        waiting = self._clients.pop(client)
        request = waiting.popleft()
        if waiting:
            self._clients[client] = waiting
        return request

    def remove(self, is_unwanted: "Callable[[PictureRequest], bool]") -> "list[PictureRequest]":
        """Remove and return all pictures of which this is true."""
        removed = [request for request in self if is_unwanted(request)]
        for request in removed:
            waiting = self._clients[request.client]
            waiting.remove(request)
            if not waiting:
                del self._clients[request.client]
        return removed
