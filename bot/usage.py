"""What counts as use of the model, and of which person and places."""

from bot.domain import Answer, ChannelKey, IncomingMessage, Scope, UsageSum


def counted_scopes(message: IncomingMessage) -> list[Scope]:
    """Return the scopes that a question is counted for; a direct chat is a person's, not a channel."""
    platform = message.channel.platform
    scopes = [Scope("user", message.author.key), Scope("platform", platform)]
    if not message.is_direct:
        scopes.append(Scope("channel", str(ChannelKey(platform, message.channel.channel))))
    if message.server:
        scopes.append(Scope("server", f"{platform}:{message.server}"))
    return scopes


def use_of(answer: Answer, milliseconds: int, *, is_counted: bool = False) -> UsageSum:
    """Return what an answer has used, also one that was stopped before its first word.

    With `is_counted` it is one answer together with an earlier one.

    A sentence in place of an answer, or an answer that failed, has used nothing.
    """
    tokens = answer.usage
    if not (tokens.prompt_tokens or tokens.completion_tokens):
        return UsageSum()
    return UsageSum(0 if is_counted else 1, tokens.prompt_tokens, tokens.completion_tokens, milliseconds)
