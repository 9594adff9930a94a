"""The error of a file that cannot be read.

Imported by the process that reads a file, which starts faster without bot.domain.
"""


class Unreadable(Exception):
    """The file has no text that can be read; `fault` is the value of a FileFault."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault
