"""Settings forms: who may open one, what it shows, and the commands that it carries out."""

from collections.abc import Mapping
from dataclasses import replace

import structlog

from bot.chat.access import Access
from bot.chat.answers import Answers
from bot.chat.incoming import clean_message
from bot.chat.settings import ChatSettings, Choices
from bot.chat.settings_commands import refusal_to_set
from bot.chat.settings_form import (
    FormField,
    FormResult,
    SettingsForm,
    all_fields,
    form_command,
    form_fields,
    opens_form,
    outdated,
)
from bot.domain import Exchange, IncomingMessage, Kind, Status
from bot.errors import StoreError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Forms:
    """Forms of all platforms; what they set is set by the same commands as in the chat."""

    def __init__(self, access: Access, settings: ChatSettings, choices: Choices, answers: Answers) -> None:
        self._access = access
        self._settings = settings
        self._choices = choices
        self._answers = answers

    async def fields(self, message: IncomingMessage) -> list[FormField]:
        """Return the settings of a conversation that a form shows there."""
        await self._choices.load()
        return form_fields(self._settings, message)

    async def carry_out(self, message: IncomingMessage) -> str:
        """Carry out a command of a form, which leaves no exchange; return the sentence that answers it."""
        translate = self._settings.translator_for(message)
        if refusal := self._access.command_refusal(message, translate):
            return refusal
        return await self._carry_out(message, message.text)

    async def open(self, message: IncomingMessage) -> SettingsForm | None:
        """Return the form that answers the message; None if it asks for none, or its author may not change settings.

        It is then answered as any other message.
        """
        if not (opens_form(message.text, is_addressed=message.is_addressed) and self._access.admits(message)):
            return None
        await self._choices.load()
        translate = self._settings.translator_for(message)
        if await refusal_to_set(self._access, message, translate) or self._access.command_refusal(message, translate):
            return None
        return await self._form(message)

    async def use(self, message: IncomingMessage, changes: Mapping[str, str]) -> FormResult:
        """Set what a form names, by the commands for it; without changes, only return the form.

        `message` is one of the person who uses the form, in the form's conversation: rights are checked
        at each use, and those of the person to whom the form was shown do not count.
        """
        translate = self._settings.translator_for(message)
        if not self._access.admits(message):
            return FormResult(translate("I do not answer here."))
        try:
            await self._choices.load()
            refusal = await refusal_to_set(self._access, message, translate)
            if changes and refusal is None:
                refusal = self._access.command_refusal(message, translate)
            if refusal is not None:
                return FormResult(refusal)
            sentences = [await self._set(message, name, value) for name, value in changes.items()]
            return FormResult("\n\n".join(dict.fromkeys(sentences)), await self._form(message))
        except StoreError as error:
            log.warning("form not carried out", error=str(error))
            return FormResult(translate("My database has a problem, so I cannot answer now. Please try again later."))

    async def at_place(self, message: IncomingMessage) -> SettingsForm:
        """Return the form of the message's conversation, for those who may change it everywhere."""
        await self._choices.load()
        return await self._form(message)

    async def _form(self, message: IncomingMessage) -> SettingsForm:
        text = await self._carry_out(message, "/settings show")
        return SettingsForm(text, all_fields(self._settings, message), self._settings.translator_for(message))

    async def _set(self, message: IncomingMessage, name: str, value: str) -> str:
        command = form_command(name, value)
        if command is None:
            return outdated(self._settings.translator_for(message))
        return await self._carry_out(message, command)

    async def _carry_out(self, message: IncomingMessage, command: str) -> str:
        message = clean_message(replace(message, text=command))
        return await self._answers.carry_out(Exchange(0, message, Kind.COMMAND, Status.OPEN, 0))
