"""The settings that answers follow; config.toml may change them while the bot runs."""

from bot.chat.i18n import Translate, translator_for
from bot.chat.rules import Rules
from bot.config.schema import Config, ConversationSection, FilesSection
from bot.domain import IncomingMessage, SamplingParams


class ChatSettings:
    """One object that all parts of the chat read; `reconfigure` takes effect at their next use.

    `answer_seconds` limits a generation, from its first text on; `max_message_chars` limits a
    message and its quotation together, which is cut.  `rules` has what places and people change
    of it: `at` returns the settings of one message, with its `model`.
    """

    def __init__(
        self,
        conversation: ConversationSection | None = None,
        params: SamplingParams | None = None,
        answer_seconds: float = 300.0,
        max_message_chars: int = 8_000,
        model: str | None = None,
        files: FilesSection | None = None,
    ) -> None:
        self.conversation = conversation or ConversationSection()
        self.params = params or SamplingParams()
        self.answer_seconds = answer_seconds
        self.max_message_chars = max_message_chars
        self.model = model
        self.files = files or FilesSection()
        self.rules = Rules()

    @classmethod
    def of(cls, config: Config) -> "ChatSettings":
        settings = cls()
        settings.reconfigure(config)
        return settings

    def reconfigure(self, config: Config) -> None:
        self.conversation = config.conversation
        self.params = SamplingParams(
            config.sampling.temperature,
            config.sampling.top_k,
            config.sampling.top_p,
            config.limits.max_answer_tokens or None,
        )
        self.answer_seconds = config.limits.answer_seconds
        self.max_message_chars = config.limits.max_message_chars
        self.files = config.files
        self.rules.reconfigure(config)

    def at(self, message: IncomingMessage) -> "ChatSettings":
        """Return the settings in force for the answer to a message."""
        if self.rules.is_empty:
            return self
        persona, model = self.rules.persona(message), self.rules.model(message)
        conversation = self.conversation
        if persona.scope is not None:
            conversation = conversation.model_copy(update={"system_prompt": persona.value.text})
        return ChatSettings(
            conversation, self.params, self.answer_seconds, self.max_message_chars, model.value, self.files
        )

    def translator_for(self, message: IncomingMessage) -> Translate:
        """Return the translator into the language of the message's author."""
        return translator_for(message, self.conversation.language)
