"""A file's content with a bounded part of it at hand, to look ahead in before it is taken."""

from __future__ import annotations

from io import BufferedReader

from mixtura.platform.containers import DamagedError

_PIECE_BYTES = 1 << 20


class ByteStream:
    """Bytes that come piece by piece. What is at hand stays there until it is dropped.

    Where the file is damaged, reaching over the damage raises its DamagedError once, after everything before it has
    come to hand; reaching again then gives what follows the damage.

    >>> import io
    >>> stream = ByteStream(io.BufferedReader(io.BytesIO(b"one two")))
    >>> stream.reach(3), stream.take(4), stream.position, stream.reach(99), bytes(stream.data)
    (True, b'one ', 4, False, b'two')
    """

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.data = bytearray()
        """What is at hand."""
        self.position = 0
        """Of the first byte at hand, in the content."""
        self.has_ended = False
        self._damage: DamagedError | None = None

    def reach(self, count: int) -> bool:
        """Have as many bytes at hand; False if the content ends before."""
        while len(self.data) < count and not self.has_ended:
            if self._damage:
                damage, self._damage = self._damage, None
                raise damage
            piece = self._file.read1(_PIECE_BYTES)
            self.data += piece
            self.has_ended = not piece
        return len(self.data) >= count

    def postpone(self, damage: DamagedError) -> None:
        """Have the next reach raise it, unless everything that it wants is at hand."""
        self._damage = damage

    def take(self, count: int) -> bytes:
        """The first bytes at hand."""
        with memoryview(self.data) as view:
            taken = bytes(view[:count])
        self.drop(count)
        return taken

    def drop(self, count: int | None = None) -> None:
        """Let go of the first bytes at hand, or of all."""
        count = len(self.data) if count is None else min(max(count, 0), len(self.data))
        del self.data[:count]
        self.position += count
