"""The files of questions: fetched from their platform, read in processes, told about in sentences."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from mimetypes import guess_type

import structlog

from bot.chat.i18n import Translate
from bot.chat.reading.fault import Unreadable
from bot.chat.reading.reader import read_file
from bot.chat.settings import ChatSettings
from bot.domain import Attachment, FileFault, FurtherMessage, IncomingMessage, keep_known
from bot.errors import BotError, PlatformUnavailable, RateLimited
from bot.util.clock import Clock
from bot.util.text import clean

# Yields the bytes of a file; raises PlatformError, or Unreadable if its platform has it no more.
Fetch = Callable[[Attachment], AsyncIterator[bytes]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Files of a message that are read; no client sends more at once.
MOST_FILES = 10
# Processes at the same time, each with up to 256 MB.
_PROCESSES = 2
# Files of one platform that are fetched or in memory at the same time.
_FETCHED = 2
# Kinds of pictures that are read; of an animation the first frame.
_PICTURES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})
# Seconds for fetching one file, for reading it, and between two attempts.
_SECONDS = 60.0
_RETRY_SECONDS = 1.0
_ATTEMPTS = 3
_LONGEST_NAME = 100
_MEGABYTE = 2**20

_FAULTS = {
    "image": FileFault.PICTURE,
    "audio": FileFault.SOUND,
    "video": FileFault.SOUND,
    "font": FileFault.KIND,
    "model": FileFault.KIND,
}


class Files:
    """Reads files with the function that the platform's adapter has put into `sources`."""

    def __init__(self, settings: ChatSettings, clock: Clock) -> None:
        self.sources: dict[str, Fetch] = {}
        self._settings = settings
        self._clock = clock
        self._process = asyncio.Semaphore(_PROCESSES)
        self._fetching = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(_FETCHED))

    async def read(self, message: IncomingMessage, *, most_pictures: int = 0) -> tuple[Attachment, ...]:
        """Return the message's files, each with its text, its picture, or the reason why it has neither.

        Of more pictures than `most_pictures` the first are kept; with 0 none is fetched.
        """
        platform, sees = message.channel.platform, most_pictures > 0
        read = await asyncio.gather(*(self._fetch_and_read(file, platform, sees=sees) for file in message.files))
        return tuple(_with_pictures(read, most_pictures))

    async def read_all(
        self, message: IncomingMessage, *, most_pictures: int = 0
    ) -> tuple[tuple[Attachment, ...], list[FurtherMessage]]:
        """Return the files of the message as `read` does, and its continuations that have unread files, with these read."""
        sees = most_pictures > 0
        unread = [each for each in message.continuations if any(is_unread(file, sees=sees) for file in each.files)]
        own, *read = await asyncio.gather(
            self.read(message, most_pictures=most_pictures),
            *(self.read(replace(message, files=each.files), most_pictures=most_pictures) for each in unread),
        )
        known = (file for each in message.continuations if each not in unread for file in each.files)
        left, found = most_pictures - sum(file.is_picture for file in (*own, *known)), []
        for part, files in zip(unread, read, strict=True):
            found.append(replace(part, files=tuple(_with_pictures(files, left))))
            left -= sum(file.is_picture for file in found[-1].files)
        return own, found

    async def read_upload(self, file: Attachment, chunks: AsyncIterator[bytes], *, sees: bool = False) -> Attachment:
        """Return a file that is being uploaded, with its text, its picture, or the reason why it has neither.

        It has arrived before a process is taken: one that trickles in holds up no file of a platform.
        It is in memory until it was read, so the caller bounds the number of uploads.
        """
        try:
            self._check(file, sees=sees)
            async with asyncio.timeout(_SECONDS):
                body = await self._collect(chunks)
        except Unreadable as error:
            return replace(file, fault=FileFault(error.fault))
        except TimeoutError:
            return replace(file, fault=FileFault.SLOW)
        return await self._read(file, body, sees=sees)

    async def _fetch_and_read(self, file: Attachment, platform: str, *, sees: bool) -> Attachment:
        if not is_unread(file, sees=sees):
            return file
        # A platform whose files trickle in, or that asks to wait, holds up its own only.
        async with self._fetching[platform]:
            try:
                self._check(file, sees=sees)
                async with asyncio.timeout(_SECONDS):
                    body = await self._fetch(file, platform)
            except Unreadable as error:
                return _unreadable(file, error)
            except (PlatformUnavailable, RateLimited):
                return replace(file, fault=FileFault.MISSING)
            except TimeoutError:
                return replace(file, fault=FileFault.SLOW)
            return await self._read(file, body, sees=sees)

    async def _read(self, file: Attachment, body: bytearray, *, sees: bool) -> Attachment:
        try:
            async with self._process, asyncio.timeout(_SECONDS):
                reading = await read_file(
                    _pieces(body),
                    most_bytes=self.most_megabytes * _MEGABYTE,
                    most_characters=self._settings.files.max_chars,
                    sees=sees,
                )
        except Unreadable as error:
            return _unreadable(file, error)
        except TimeoutError:
            return replace(file, fault=FileFault.SLOW)
        file = replace(file, source="", fault=None)
        if reading.picture is not None:
            return replace(file, is_picture=True, picture=reading.picture)
        return replace(file, text=reading.text, is_cut=reading.is_cut)

    def _check(self, file: Attachment, *, sees: bool) -> None:
        """Raise Unreadable for what need not be fetched."""
        if not self._settings.files.enabled:
            raise Unreadable("off")
        if (fault := _fault_of_type(file, sees=sees)) is not None:
            raise Unreadable(fault.value)
        if file.size > self.most_megabytes * _MEGABYTE:
            raise Unreadable("large")

    async def _fetch(self, file: Attachment, platform: str) -> bytearray:
        if (fetch := self.sources.get(platform)) is None:
            raise Unreadable("missing")
        attempt = 1
        while True:
            try:
                return await self._collect(fetch(file))
            except (PlatformUnavailable, RateLimited) as error:
                log.info("a file was not fetched", attempt=attempt, error=str(error))
                if attempt == _ATTEMPTS:
                    raise
                await self._clock.sleep(error.seconds if isinstance(error, RateLimited) else _RETRY_SECONDS)
            except BotError as error:
                log.warning("a file was not fetched", error=str(error))
                raise Unreadable("missing") from error
            attempt += 1

    async def _collect(self, chunks: AsyncIterator[bytes]) -> bytearray:
        """Return a file; raise Unreadable for one that is too large."""
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            if len(body) > self.most_megabytes * _MEGABYTE:
                raise Unreadable("large")
        return body

    @property
    def most_megabytes(self) -> int:
        """The largest file that is read."""
        return self._settings.files.max_megabytes


def _unreadable(file: Attachment, error: Unreadable) -> Attachment:
    log.info("a file was not read", reason=error.fault)
    fault = FileFault(error.fault)
    # Another model may see a picture when it answers again.
    is_for_good = fault not in (FileFault.PICTURE, FileFault.SLOW)
    return replace(file, source="" if is_for_good else file.source, fault=fault)


async def _pieces(body: bytearray) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), _MEGABYTE):
        yield bytes(body[begin : begin + _MEGABYTE])


def _with_pictures(files: Iterable[Attachment], most: int) -> Iterator[Attachment]:
    """Yield the files with the first pictures."""
    for file in files:
        most -= file.is_picture
        yield (
            replace(file, is_picture=False, picture=None, fault=FileFault.MANY)
            if file.is_picture and most < 0
            else file
        )


def cleaned(files: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """Return the first files, with names that are safe to show."""
    return tuple(
        replace(
            file,
            name=" ".join(clean(file.name).split())[:_LONGEST_NAME] or "?",
            source=clean(file.source),
            id=clean(file.id),
        )
        for file in list(files)[:MOST_FILES]
    )


def may_be_read(message: IncomingMessage) -> bool:
    """Return whether a file of the message is worth reading, for a model that sees."""
    return any(
        _fault_of_type(file, sees=True) is None
        and (file.fault in (None, FileFault.PICTURE) or is_unread(file, sees=True))
        for file in message.files
    )


def is_unread(file: Attachment, *, sees: bool) -> bool:
    """Return whether there is something to do about a file.

    Also about a picture that an earlier model could not see, and a file that its platform could not hand out in time.
    """
    if not file.is_read:
        return True
    may_pass = file.fault in (FileFault.MISSING, FileFault.SLOW) or (sees and file.fault is FileFault.PICTURE)
    return may_pass and bool(file.source)


def updated(known: Iterable[Attachment], edited: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """Return the files of an edited message: what was read of those it still has, and those of its quotation."""
    known = list(known)
    own = keep_known((file for file in edited if not file.is_quoted), (file for file in known if not file.is_quoted))
    return (*own, *(file for file in known if file.is_quoted))


def unread_notices(files: Iterable[Attachment], most_megabytes: int, translate: Translate) -> list[str]:
    """Return one sentence for each reason why files were not read."""
    names: dict[FileFault, list[str]] = {}
    for file in files:
        if file.fault is not None:
            names.setdefault(file.fault, []).append(file.name)
    return [
        _sentence(fault, translate).format(files=", ".join(dict.fromkeys(each)), limit=most_megabytes)
        for fault, each in names.items()
    ]


def _sentence(fault: FileFault, translate: Translate) -> str:
    match fault:
        case FileFault.PICTURE:
            return translate("I cannot see pictures, so I skipped {files}.")
        case FileFault.MANY:
            return translate("I did not look at {files}: too many pictures at once.")
        case FileFault.SOUND:
            return translate("I cannot play audio or video, so I skipped {files}.")
        case FileFault.LARGE:
            return translate("I did not read {files}: too large, the limit is {limit} MB.")
        case FileFault.LOCKED:
            return translate("I did not read {files}: it has a password.")
        case FileFault.DAMAGED:
            return translate("I could not read {files}: the file is damaged.")
        case FileFault.EMPTY:
            return translate("I found no text in {files}.")
        case FileFault.SLOW:
            return translate("I could not read {files}: it took too long.")
        case FileFault.MISSING:
            return translate("I could not read {files}: the file could not be fetched.")
        case FileFault.OFF:
            return translate("I do not read files here, so I did not read {files}.")
        case FileFault.KIND:
            return translate("I cannot read files of this kind: {files}.")


def _fault_of_type(file: Attachment, *, sees: bool) -> FileFault | None:
    """Return why a file of this type is not even fetched; any other may be a text whatever it is called."""
    media_type = (file.media_type or guess_type(file.name)[0] or "").lower()
    if sees and media_type in _PICTURES:
        return None
    fault = _FAULTS.get(media_type.partition("/")[0])
    if sees and fault is FileFault.PICTURE:
        return FileFault.KIND
    # For TypeScript and MPEG streams there is one ending.
    return None if file.name.endswith((".ts", ".mts")) else fault
