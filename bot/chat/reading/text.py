"""The text of a file while it is read, up to a limit."""


class Full(Exception):
    """The limit is reached: no more is needed."""


class Text:
    r"""Pieces of text, at most `limit` characters together.

    >>> text = Text(6)
    >>> try:
    ...     text.add("four", "fifty")
    ... except Full:
    ...     str(text)
    'fourfi'
    """

    def __init__(self, limit: int) -> None:
        self._pieces: list[str] = []
        self._left = limit

    def add(self, *pieces: str) -> None:
        """Append these.

        Raises:
            Full: The limit is reached.
        """
        for piece in pieces:
            self._pieces.append(piece[: self._left])
            self._left -= len(piece)
            if self._left < 0:
                raise Full

    def __str__(self) -> str:
        return "".join(self._pieces)
