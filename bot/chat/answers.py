"""Answer a claimed exchange: with its stored answer, a command, a refusal, or the model."""

from functools import partial

import structlog

from bot.chat.access import Access
from bot.chat.command_table import CommandContext
from bot.chat.commands import called_by, is_forget
from bot.chat.conversation import Conversations
from bot.chat.exchanges import Exchanges
from bot.chat.i18n import Translate
from bot.chat.quotas import Quotas
from bot.chat.settings import ChatSettings, Choices
from bot.chat.sign_in import SignIn
from bot.chat.stream import REFUSED, ReplyStream, refused
from bot.chat.worker import Worker
from bot.config.reload import ConfigWatcher
from bot.domain import Answer, Delta, Exchange, Finished, FinishReason, IncomingMessage, Kind, Notice, QueueDepth
from bot.engine.base import Engine
from bot.errors import StoreError
from bot.observability.health import Components
from bot.observability.metrics import Metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Answers:
    """Opens the stream of each reply; the answer is stored before `Finished` is put."""

    def __init__(
        self,
        access: Access,
        exchanges: Exchanges,
        conversations: Conversations,
        engine: Engine,
        settings: ChatSettings,
        choices: Choices,
        quotas: Quotas,
        metrics: Metrics,
        sign_in: SignIn,
        watcher: ConfigWatcher | None = None,
        components: Components | None = None,
    ) -> None:
        self._access = access
        self._exchanges = exchanges
        self._conversations = conversations
        self._engine = engine
        self._settings = settings
        self._choices = choices
        self._quotas = quotas
        self._metrics = metrics
        self._sign_in = sign_in
        self._watcher = watcher
        self._components = components

    def stream(self, exchange: Exchange) -> ReplyStream:
        """Return the reply of a claimed exchange; entering the stream begins to answer.

        Raises:
            ClaimLost: The claim is another worker's by now.
        """
        worker = self._exchanges.worker(exchange)
        worker.leaves_no_trace = exchange.kind is Kind.COMMAND and is_forget(exchange)
        return ReplyStream(partial(self._produce, worker))

    async def _produce(self, worker: Worker, stream: ReplyStream) -> None:
        exchange = worker.exchange
        message, outcome = exchange.message, "broken_off"
        log.info("exchange begins", exchange=exchange.id, kind=exchange.kind.value, channel=str(message.channel))
        try:
            finished = await self._answer(worker, stream)
            outcome = "refused" if finished is REFUSED else finished.reason.value
            if exchange.answer is None:  # else its tokens were counted when it was generated
                self._access.spend(message, finished.usage)
            log.info("exchange answered", exchange=exchange.id, reason=outcome)
            stream.put(finished)
        finally:
            platform = message.channel.platform
            self._metrics.reply_changes.labels(platform).inc(stream.changes)
            self._metrics.exchanges.labels(platform, exchange.kind.value, outcome).inc()

    async def _answer(self, worker: Worker, stream: ReplyStream) -> Finished:
        exchange = worker.exchange
        if exchange.answer is not None:
            return _show_stored(exchange.answer, stream)
        if exchange.is_unreadable:
            self._exchanges.queues.leave(worker)
            translate = self._settings.translator_for(exchange.message)
            sentence = translate("This message can no longer be read from my database. Please send it again.")
            stream.put(Notice(sentence))
            await self._exchanges.record_answer(exchange, refused(sentence))
            return Finished(FinishReason.ERROR)
        if exchange.kind is Kind.COMMAND:
            return await self._run_command(exchange, stream)
        if refusal := await self._refusal(worker):
            self._exchanges.queues.leave(worker)
            return await self._refuse(exchange, "question", refusal, stream)
        if called_by(exchange.message) is not None:
            self._exchanges.queues.leave(worker)
            translate = self._settings.translator_for(exchange.message)
            sentence = translate("Commands work in new messages only, not in edited ones. Please send it again.")
            return await self._refuse(exchange, "command", sentence, stream)
        return await self._conversations.answer(worker, stream)

    async def admits(self, worker: Worker) -> bool:
        """Return whether the question is going to be answered; one that is counts against the limits from now on."""
        return await self._refusal(worker) is None

    async def _refusal(self, worker: Worker) -> str | None:
        """Return a sentence if the question is refused; None counts it, unless that was done before."""
        exchange = worker.exchange
        translate = self._settings.translator_for(exchange.message)
        if worker.is_admitted:  # perhaps before another message of it came
            return self._access.text_refusal(exchange.message, translate)
        who = self._settings.rules.who(exchange.message)
        if refusal := await self._access.asker_refusal(exchange.message, who, translate):
            return refusal
        # Questions from the backlog are exempt from the limit of waiting ones.
        depth = QueueDepth() if worker.is_backlog else self._exchanges.depth(exchange)
        over_quota = await self._over_quota(exchange.message, translate)
        refusal = over_quota or self._access.refusal(exchange.message, translate, depth)
        worker.is_admitted = refusal is None
        return refusal

    async def _over_quota(self, message: IncomingMessage, translate: Translate) -> str | None:
        """Return why the question need not wait for its turn, when its quotas are checked again."""
        try:
            return await self._quotas.refusal(message, translate)
        except StoreError:
            return None

    async def _run_command(self, exchange: Exchange, stream: ReplyStream) -> Finished:
        translate = self._settings.translator_for(exchange.message)
        if refusal := self._access.command_refusal(exchange.message, translate):
            return await self._refuse(exchange, "command", refusal, stream)
        sentence = await self.carry_out(exchange)
        stream.put(Notice(sentence))
        await self._exchanges.record_answer(exchange, Answer("", sentence))
        return Finished(FinishReason.STOP)

    async def carry_out(self, exchange: Exchange) -> str:
        """Carry out the command that the message calls; return the sentence that answers it."""
        translate = self._settings.translator_for(exchange.message)
        called = called_by(exchange.message)
        assert called is not None, "an exchange of kind command calls one"
        command, arguments = called
        context = CommandContext(
            exchange,
            arguments,
            translate,
            self._access,
            self._exchanges,
            self._engine,
            self._settings,
            self._choices,
            self._quotas,
            self._sign_in,
            self._watcher,
            self._components,
        )
        try:
            await self._choices.load()
            return await command.run(context)
        except StoreError as error:
            log.warning("command failed", exchange=exchange.id, error=str(error))
            return translate("My database has a problem, so I cannot answer now. Please try again later.")

    async def _refuse(self, exchange: Exchange, kind: str, sentence: str, stream: ReplyStream) -> Finished:
        self._metrics.refusals.labels(kind).inc()
        stream.put(Notice(sentence))
        await self._exchanges.record_answer(exchange, refused(sentence))
        return REFUSED


def _show_stored(answer: Answer, stream: ReplyStream) -> Finished:
    if answer.text:
        stream.put(Delta(answer.text))
    if answer.notice:
        stream.put(Notice(answer.notice))
    return Finished(answer.reason, answer.usage)
