"""Whether this node's id is its own: decisions only, from what the directory shows.

One entry a node id, written by compare-and-set: who holds it is the node, and any other live process with that id is
fenced: it takes no commands and begins no transfers until the entry has been given up or has not been renewed for
`expiry_s`. The reasoning:

- **Losing the broker fences nobody.** Standing changes only by what the directory says. A node that was never told
  otherwise works, and so does one that cannot ask.
- **Only what is seen counts.** An entry is dead when it was not renewed for `expiry_s` while this process could look,
  on this process's own clock. Neither the clock of the broker nor that of another machine is asked, and a bucket
  without an expiry, or one that vanished with its broker, changes nothing.
- **Who holds it keeps it.** After a partition two working nodes may meet: one whose entry aged meanwhile, and one that
  claimed the id. The latter holds it; the former finds a living entry and is fenced. The other way round they could
  take turns, for the entry of each would look old to the other; and which of them "was first" only clocks could tell.
- **A restart is no rival.** An entry of an earlier run on the same state directory is taken over at once (`former`):
  the lock of that directory proves that the run is over. A copy of the directory shows itself the other way round: the
  run that it displaces finds a stranger in its place and is fenced.
- **It is a fence and no lock.** Two nodes that were never connected to the broker at the same time are not told apart,
  and one that is cut off works on. What keeps a server safe is the panel and the journal, never this.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Standing(StrEnum):
    UNTOLD = "untold"  # no directory has been seen yet: works
    HELD = "held"  # the entry is ours
    FENCED = "fenced"  # the entry is another live process's


class Found(msgspec.Struct, frozen=True):
    """What stands under our id."""

    epoch: str | None  # whose entry it is; None: given up by its holder
    revision: int


class Fence:
    """Args: epoch, the name of this run; former, names of earlier ones of the same state directory; expiry_s."""

    def __init__(self, epoch: str, former: frozenset[str], *, expiry_s: float) -> None:
        self._ours = former | {epoch}
        self._expiry_s = expiry_s
        self._standing = Standing.UNTOLD
        self._renewed_at = 0.0
        self._revision = 0
        self.rival: str | None = None  # who fenced this process last

    @property
    def standing(self) -> Standing:
        return self._standing

    @property
    def revision(self) -> int:
        """Of the entry that is ours; 0 where there is none to replace."""
        return self._revision

    def reconnected(self, now: float) -> None:
        """Nothing could be seen before `now`: whatever holds the entry counts as renewed."""
        self._renewed_at = now

    def claimed(self, revision: int) -> None:
        """The entry has been written."""
        self._standing = Standing.HELD
        self._revision = revision

    def lost(self) -> None:
        """The entry is no longer at our revision: look before the next claim."""
        self._revision = 0

    def may_claim(self, found: Found | None, now: float) -> bool:
        """Whether this process may write the entry over `found`, by compare-and-set of its revision (0 where none is).

        Args: found, what stands there; now, seconds that only go forward.
        """
        if found is not None and found.epoch is not None and found.epoch not in self._ours:
            if self._standing is not Standing.FENCED or found.revision != self._revision:
                self._renewed_at = now
            self._standing = Standing.FENCED
            self.rival = found.epoch
            self._revision = found.revision
            return now - self._renewed_at >= self._expiry_s
        self._revision = found.revision if found is not None else 0
        if found is None and self._standing is Standing.FENCED:
            # It may have vanished with its bucket, and its holder is about to write it anew.
            return now - self._renewed_at >= self._expiry_s
        return True
