"""The command /usage: what was used, what is left of the quotas, and when they return."""

from bot.chat.command_table import CommandContext, Subcommand
from bot.chat.i18n import gettext_noop
from bot.chat.quotas import Quota
from bot.config.quotas import PERIODS, Period
from bot.domain import Scope, ScopeLevel, UsageSum

USAGE = (
    Subcommand("show", gettext_noop("Show what you have used, and what is left of your quota")),
    Subcommand("server", gettext_noop("Show what this server has used (admins)")),
)

_OWNERS: dict[ScopeLevel, str] = {
    "user": gettext_noop("You"),
    "channel": gettext_noop("This channel"),
    "server": gettext_noop("This server"),
    "platform": gettext_noop("This platform"),
}
_PERIODS: dict[Period, str] = {
    "day": gettext_noop("today"),
    "week": gettext_noop("this week"),
    "month": gettext_noop("this month"),
}


async def usage(context: CommandContext) -> str:
    """Show what the author has used and may still use; admins also read that of the server."""
    translate, message = context.translate, context.exchange.message
    levels: tuple[ScopeLevel, ...] = ("user", "channel", "server")
    match context.arguments.lower():
        case "" | "show":
            scope = Scope("user", message.author.key)
        case "server" if not context.is_by_admin:
            return translate("Only admins may do that.")
        case "server":
            platform = message.channel.platform
            here = Scope("server", f"{platform}:{message.server}")
            scope, levels = here if message.server else Scope("platform", platform), ("server",)
        case _:
            return translate("Write `/usage`, or as an admin `/usage server`.")
    lines = [_used(scope, period, await context.quotas.used(scope, period), context) for period in PERIODS]
    quotas = [quota for quota in await context.quotas.of(message) if quota.scope.level in levels]
    lines += [_left(quota, context) for quota in quotas]
    if not quotas:
        is_of_server = levels == ("server",)
        none = translate("No quota is set for this server.") if is_of_server else translate("No quota is set here.")
        lines.append(none)
    return "\n".join(f"- {line}" for line in lines)


def _used(scope: Scope, period: Period, use: UsageSum, context: CommandContext) -> str:
    translate = context.translate
    return translate("{owner}, {period}: answers {answers}, tokens {tokens}, seconds of the model {seconds}").format(
        owner=translate(_OWNERS[scope.level]),
        period=translate(_PERIODS[period]),
        answers=f"{use.answers:,}",
        tokens=f"{use.tokens:,}",
        seconds=f"{use.seconds:,}",
    )


def _left(quota: Quota, context: CommandContext) -> str:
    translate = context.translate
    return translate("{owner}, {amount}, left: {left}; the quota returns in {time} ({date}, 00:00 UTC)").format(
        owner=translate(_OWNERS[quota.scope.level]),
        left=f"{quota.left:,}",
        amount=quota.amount(translate),
        time=context.quotas.time_until(quota.returns, translate),
        date=quota.returns,
    )
