"""The form that /settings opens on each platform, in its native way."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.chat.i18n import translator
from bot.config.schema import Config
from bot.domain import ChannelKey
from tests.adapters.test_settings_commands import CHANGED, REFUSED, TABLES, instructions
from tests.harness import slack_harness, telegram_harness
from tests.harness.discord_harness import DiscordBot, run_discord_bot
from tests.harness.harness import Harness
from tests.harness.platform import Fault
from tests.harness.servers.discord import DiscordPlatform
from tests.harness.servers.discord_payloads import Json
from tests.harness.servers.discord_world import EPHEMERAL
from tests.harness.servers.slack import SlackServer
from tests.harness.servers.slack_views import element_of, text_of
from tests.harness.servers.telegram import Message, TelegramPlatform

COOLER = "From the next message on:\n\n- `temperature` = 0.5 (for this channel, set in the chat)"


async def chosen(harness: Harness) -> dict[str, str | None]:
    """Return what is set in the chat: values, and texts."""
    changes = await harness.store.settings()
    return {change.setting: change.value or change.text for change in changes if not change.is_cleared}


class TestDiscord:
    @pytest.fixture
    async def bot(self, platform: DiscordPlatform, tmp_path: Path) -> AsyncIterator[DiscordBot]:
        async with run_discord_bot(platform, tmp_path) as bot:
            bot.harness.settings.reconfigure(Config(**TABLES))
            platform.managers.add("Mei")
            yield bot

    def form(self, platform: DiscordPlatform) -> Json:
        """Return the newest message of the bot that has a menu."""
        return next(each for each in reversed(platform.messages.values()) if each["components"])

    def menu(self, platform: DiscordPlatform) -> Json:
        menu: Json = self.form(platform)["components"][0]["components"][0]
        return menu

    async def open(self, platform: DiscordPlatform) -> str:
        """Open the form; return the id of its message."""
        await platform.command("settings show")
        await platform.until(lambda: any(each["components"] for each in platform.messages.values()))
        return str(self.form(platform)["id"])

    async def page(self, platform: DiscordPlatform, form: str, name: str) -> None:
        """Choose a setting, and wait for what it can be."""
        await platform.choose(form, "settings", name)
        await platform.until(lambda: self.menu(platform)["custom_id"] == f"settings:{name}")

    async def modal(self, platform: DiscordPlatform, form: str, name: str) -> Json:
        """Choose a setting, and wait for its modal."""
        count = len(platform.modals)
        await platform.choose(form, "settings", name)
        await platform.until(lambda: len(platform.modals) > count)
        return platform.modals[-1][1]

    async def test_a_chosen_value_is_set_as_by_the_command(self, bot: DiscordBot) -> None:
        platform = bot.platform
        form = await self.open(platform)
        assert self.form(platform)["flags"] & EPHEMERAL
        assert "`temperature` = 0.95 (default)" in bot.shown()[-1]
        await self.page(platform, form, "persona")
        assert [option["label"] for option in self.menu(platform)["options"]] == ["pirate", "poet", "Default"]
        await platform.choose(form, "settings:persona", "pirate")
        await bot.shows(CHANGED)
        assert self.menu(platform)["custom_id"] == "settings"
        change, *_ = await bot.harness.store.setting_changes(
            str(ChannelKey("discord", str(platform.channel("general")))), 9
        )
        assert (change.setting, change.value, change.author.name) == ("persona", "pirate", "Mei")
        await platform.say("hello")
        await bot.shows(CHANGED, "ok")
        assert instructions(bot.harness) == ["You are a pirate."]

    async def test_a_number_is_written_into_a_modal_that_has_the_present_one(self, bot: DiscordBot) -> None:
        form = await self.open(bot.platform)
        modal = await self.modal(bot.platform, form, "temperature")
        assert modal["components"][0]["component"]["value"] == "0.95"
        await bot.platform.submit({"value": "0.5"})
        await bot.shows(COOLER)
        assert await chosen(bot.harness) == {"temperature": "0.5"}
        await self.modal(bot.platform, form, "temperature")
        await bot.platform.submit({"value": ""})
        await bot.platform.until(lambda: "0.95 (default)" in bot.shown()[0])
        assert await chosen(bot.harness) == {}

    async def test_a_wrong_number_is_refused_in_one_sentence(self, bot: DiscordBot) -> None:
        form = await self.open(bot.platform)
        await self.modal(bot.platform, form, "temperature")
        await bot.platform.submit({"value": "hot"})
        await bot.shows("`temperature` cannot be hot. Sampling temperature: from 0 (always the likeliest word) to 2.")
        assert await chosen(bot.harness) == {}

    async def test_a_persona_is_written_into_a_modal(self, bot: DiscordBot) -> None:
        form = await self.open(bot.platform)
        await self.modal(bot.platform, form, "persona_text")
        await bot.platform.submit({"value": "You are\na parrot."})
        await bot.platform.until(lambda: "a text of 17 characters" in bot.shown()[0])
        assert await chosen(bot.harness) == {"persona": "You are\na parrot."}
        modal = await self.modal(bot.platform, form, "persona_text")
        assert modal["components"][0]["component"]["value"] == "You are\na parrot."

    async def test_the_last_change_is_taken_back_with_a_button(self, bot: DiscordBot) -> None:
        form = await self.open(bot.platform)
        await self.page(bot.platform, form, "show_thoughts")
        await bot.platform.choose(form, "settings:show_thoughts", "true")
        await bot.platform.until(lambda: "`show_thoughts` = true" in bot.shown()[0])
        await bot.platform.click(form, "settings:undo")
        await bot.platform.until(lambda: "`show_thoughts` = false (default)" in bot.shown()[0])
        assert await chosen(bot.harness) == {}

    async def test_back_shows_all_settings_again(self, bot: DiscordBot) -> None:
        form = await self.open(bot.platform)
        await self.page(bot.platform, form, "language")
        await bot.platform.click(form, "settings:back")
        await bot.platform.until(lambda: self.menu(bot.platform)["custom_id"] == "settings")

    async def test_without_the_right_the_settings_are_a_text(self, bot: DiscordBot) -> None:
        bot.platform.managers.clear()
        await bot.platform.command("settings show")
        await bot.platform.until(lambda: "`temperature` = 0.95 (default)" in "".join(bot.shown()))
        assert not any(each["components"] for each in bot.platform.messages.values())

    async def test_a_right_that_is_lost_meanwhile_changes_nothing(self, bot: DiscordBot) -> None:
        platform = bot.platform
        form = await self.open(platform)
        await self.page(platform, form, "persona")
        shown, before = bot.shown(), len(platform.modals)
        platform.managers.clear()
        await platform.choose(form, "settings:persona", "pirate")
        await bot.shows(*shown, REFUSED)
        assert platform.messages[int(platform.seen()[-1].id)]["flags"] & EPHEMERAL
        platform.managers.add("Mei")
        await platform.click(form, "settings:back")
        await platform.until(lambda: self.menu(platform)["custom_id"] == "settings")
        await self.modal(platform, form, "temperature")
        platform.managers.clear()
        await platform.submit({"value": "0.5"})
        await bot.shows(*shown, REFUSED, REFUSED)
        await platform.choose(form, "settings", "temperature")
        await bot.shows(*shown, REFUSED, REFUSED, REFUSED)
        assert (len(platform.modals), await chosen(bot.harness)) == (before + 1, {})

    async def test_the_form_is_in_its_users_language(self, bot: DiscordBot) -> None:
        bot.platform.locales["Mei"] = "zh-CN"
        zh = translator("zh")
        form = await self.open(bot.platform)
        assert self.menu(bot.platform)["placeholder"] == zh("Choose a setting") != "Choose a setting"
        await self.modal(bot.platform, form, "top_p")
        await bot.platform.submit({"value": "2"})
        await bot.platform.until(lambda: bot.shown()[0].startswith("`top_p` 不能是 2。"))


class TestTelegram:
    @pytest.fixture
    async def telegram(self, harness: Harness) -> AsyncIterator[TelegramPlatform]:
        harness.settings.reconfigure(Config(**TABLES))
        async with TelegramPlatform() as telegram, telegram_harness.running(telegram, harness):
            telegram.administrators.add("Mei")
            yield telegram
        assert telegram.violations == []

    async def open(self, telegram: TelegramPlatform, *, thread: str | None = None) -> Message:
        """Open the form in a group or in one of its topics; return its message."""
        await telegram.say("/settings", thread=thread)
        await telegram.until(lambda: any(each.buttons for each in telegram.messages.values()))
        return next(each for each in telegram.messages.values() if each.buttons)

    def data(self, form: Message) -> list[str]:
        return [data for _, data in form.buttons]

    async def page(self, telegram: TelegramPlatform, form: Message, name: str) -> None:
        """Tap a setting, and wait for its values."""
        telegram.tap(form, f"settings:{name}")
        await telegram.until(lambda: f"settings:{name}:clear" in self.data(form))

    async def test_a_tapped_value_is_set_as_by_the_command(self, telegram: TelegramPlatform, harness: Harness) -> None:
        form = await self.open(telegram)
        assert ("Temperature: 0.95", "settings:temperature") in form.buttons
        await self.page(telegram, form, "persona")
        assert form.buttons == (
            ("pirate", "settings:persona:pirate"),
            ("poet", "settings:persona:poet"),
            ("Default", "settings:persona:clear"),
            ("Back", "settings"),
        )
        press = telegram.tap(form, "settings:persona:pirate")
        await telegram.until(lambda: press in telegram.answers)
        assert "Persona: pirate (for this channel, set in the chat)" in form.text
        assert ("Persona: pirate", "settings:persona") in form.buttons
        assert await chosen(harness) == {"persona": "pirate"}
        await telegram.say("hello")
        await telegram.until(lambda: len(harness.engine.requests) == 1)
        assert instructions(harness) == ["You are a pirate."]

    async def test_in_a_topic_the_form_sets_the_topics_value(
        self, telegram: TelegramPlatform, harness: Harness
    ) -> None:
        form = await self.open(telegram, thread="tea")
        await self.page(telegram, form, "temperature")
        telegram.tap(form, "settings:temperature:0.5")
        await telegram.until(lambda: "`" not in form.text and "0.5 (for this thread" in form.text)
        (change,) = await harness.store.settings()
        assert change.scope.level == "thread"

    async def test_the_last_change_is_taken_back_with_a_button(
        self, telegram: TelegramPlatform, harness: Harness
    ) -> None:
        form = await self.open(telegram)
        await self.page(telegram, form, "show_thoughts")
        telegram.tap(form, "settings:show_thoughts:true")
        await telegram.until(lambda: "true (for this channel" in form.text)
        telegram.tap(form, "settings:undo:")
        await telegram.until(lambda: "false (default)" in form.text)
        assert await chosen(harness) == {}

    async def test_a_press_of_undo_that_comes_again_takes_nothing_back(
        self, telegram: TelegramPlatform, harness: Harness
    ) -> None:
        form = await self.open(telegram)
        for value in ("0.5", "1"):
            await self.page(telegram, form, "temperature")
            telegram.tap(form, f"settings:temperature:{value}")
            await telegram.until(lambda: ("Undo", "settings:undo:") in form.buttons)
        telegram.script = lambda number, name: Fault("500") if name == "editMessageText" else None
        press = telegram.tap(form, "settings:undo:")
        await telegram.until(lambda: press in telegram.answers)
        telegram.script = lambda number, name: None
        del telegram.answers[press]
        telegram.repeat_press()
        await telegram.until(lambda: press in telegram.answers)
        assert "temperature = 0.5 (for this channel" in form.text
        assert await chosen(harness) == {"temperature": "0.5"}

    async def test_a_person_without_the_right_is_told_so_and_changes_nothing(
        self, telegram: TelegramPlatform, harness: Harness
    ) -> None:
        form = await self.open(telegram)
        await self.page(telegram, form, "persona")
        shown = form.text, form.buttons
        presses = [telegram.tap(form, data, author="Jo") for data in ("settings:persona:pirate", "settings")]
        telegram.administrators.clear()
        presses.append(telegram.tap(form, "settings:persona:pirate"))
        await telegram.until(lambda: set(presses) <= set(telegram.answers))
        assert [telegram.answers[press] for press in presses] == [REFUSED] * 3
        assert ((form.text, form.buttons), await chosen(harness)) == (shown, {})

    async def test_without_the_right_the_settings_are_a_text(self, telegram: TelegramPlatform) -> None:
        await telegram.say("/settings", author="Jo")
        await telegram.until(lambda: any("0.95 (default)" in text for text in telegram_harness.texts(telegram)))
        assert not any(each.buttons for each in telegram.messages.values())

    async def test_a_value_that_is_no_longer_offered_is_refused_in_one_sentence(
        self, telegram: TelegramPlatform, harness: Harness
    ) -> None:
        form = await self.open(telegram)
        await self.page(telegram, form, "persona")
        harness.settings.reconfigure(Config(personas={"poet": TABLES["personas"]["poet"]}))
        telegram.tap(form, "settings:persona:pirate")
        await telegram.until(lambda: form.text == "Unknown persona pirate; choose one of poet.")
        assert await chosen(harness) == {}

    async def test_an_old_form_whose_topic_is_unknown_sets_nothing(
        self, telegram: TelegramPlatform, harness: Harness
    ) -> None:
        form = await self.open(telegram, thread="tea")
        await self.page(telegram, form, "temperature")
        press = telegram.tap(form, "settings:temperature:0.5", is_old=True)
        await telegram.until(lambda: press in telegram.answers)
        assert telegram.answers[press] == "This form is out of date. Please send /settings again."
        assert await chosen(harness) == {}

    async def test_where_a_form_cannot_be_sent_a_reply_has_the_settings(
        self, telegram: TelegramPlatform, harness: Harness
    ) -> None:
        telegram.script = lambda number, name: Fault("500") if number == 0 else None
        await telegram.say("/settings")
        await telegram.until(lambda: any("0.95 (default)" in text for text in telegram_harness.texts(telegram)))
        assert not any(each.buttons for each in telegram.messages.values())

    async def test_the_form_is_in_the_language_of_who_taps(self, telegram: TelegramPlatform, harness: Harness) -> None:
        telegram.language, zh = "zh-hans", translator("zh")
        form = await self.open(telegram)
        assert (zh("Undo"), "settings:undo:") in form.buttons
        await self.page(telegram, form, "language")
        telegram.language = "en"
        telegram.tap(form, "settings")
        await telegram.until(lambda: ("Undo", "settings:undo:") in form.buttons)


class TestSlack:
    @pytest.fixture(params=["socket", "http"])
    async def slack(self, request: pytest.FixtureRequest, harness: Harness) -> AsyncIterator[SlackServer]:
        harness.settings.reconfigure(Config(**TABLES))
        async with SlackServer(mode=request.param) as server, slack_harness.running(harness, server):
            server.workspace.admins.add("Mei")
            yield server
        assert server.violations == []

    async def open(self, slack: SlackServer) -> str:
        """Open the form; return the id of its modal."""
        await slack.command("settings")
        await slack.until(lambda: bool(slack.views.open) and slack.is_quiet)
        return next(iter(slack.views.open))

    async def submit(self, slack: SlackServer, form: str, **values: str | None) -> str:
        """Submit the form; return what the modal says then, or "" for one that was closed."""
        await slack.submit(form, **values)
        await slack.until(lambda: slack.is_quiet)
        return text_of(slack.views.open[form]) if form in slack.views.open else ""

    async def test_submitted_values_are_set_as_by_the_commands(self, slack: SlackServer, harness: Harness) -> None:
        form = await self.open(slack)
        view = slack.views.open[form]
        assert "`temperature` = 0.95 (default)" in text_of(view)
        assert element_of(view, "temperature")["initial_value"] == "0.95"
        assert [each["value"] for each in element_of(view, "persona")["options"]] == ["pirate", "poet", "clear"]
        said = await self.submit(slack, form, persona="pirate", temperature="0.5")
        assert said == f"{CHANGED}\n\n{COOLER}"
        assert await chosen(harness) == {"persona": "pirate", "temperature": "0.5"}
        await slack.say("hello")
        await slack.until(lambda: len(harness.engine.requests) == 1)
        assert instructions(harness) == ["You are a pirate."]

    async def test_an_emptied_number_is_the_default_again(self, slack: SlackServer, harness: Harness) -> None:
        await self.submit(slack, await self.open(slack), temperature="0.5")
        slack.views.open.clear()
        await self.submit(slack, await self.open(slack), temperature=None)
        assert await chosen(harness) == {}

    async def test_what_is_left_as_it_was_is_not_set(self, slack: SlackServer, harness: Harness) -> None:
        form = await self.open(slack)
        await slack.say("/settings temperature 0.5")
        await slack_harness.answered(slack, COOLER)
        await self.submit(slack, form, top_p="0.9")
        assert await chosen(harness) == {"temperature": "0.5", "top_p": "0.9"}
        slack.views.open.clear()
        assert await self.submit(slack, await self.open(slack)) == ""
        assert len(await chosen(harness)) == 2

    async def test_a_persona_is_written_into_the_modal(self, slack: SlackServer, harness: Harness) -> None:
        await self.submit(slack, await self.open(slack), persona_text="You are\na parrot.")
        assert await chosen(harness) == {"persona": "You are\na parrot."}
        slack.views.open.clear()
        form = await self.open(slack)
        assert element_of(slack.views.open[form], "persona_text")["initial_value"] == "You are\na parrot."
        await self.submit(slack, form, persona_text=None)
        assert await chosen(harness) == {}

    async def test_a_wrong_number_is_refused_in_one_sentence(self, slack: SlackServer, harness: Harness) -> None:
        said = await self.submit(slack, await self.open(slack), temperature="3")
        assert said == "`temperature` cannot be 3. Sampling temperature: from 0 (always the likeliest word) to 2."
        assert await chosen(harness) == {}

    async def test_a_right_that_is_lost_meanwhile_changes_nothing(self, slack: SlackServer, harness: Harness) -> None:
        form = await self.open(slack)
        slack.workspace.admins.clear()
        assert await self.submit(slack, form, persona="pirate", temperature="0.5") == REFUSED
        assert await chosen(harness) == {}

    async def test_without_the_right_the_settings_are_a_text(self, slack: SlackServer) -> None:
        await slack.command("settings", author="Ben")
        await slack.until(lambda: any("0.95 (default)" in text for text in slack_harness.bots(slack.seen("general"))))
        assert "views.open" not in slack.calls

    async def test_where_a_form_cannot_be_opened_a_text_has_the_settings(self, slack: SlackServer) -> None:
        slack.views.refused = "expired_trigger_id"
        await slack.command("settings")
        await slack.until(lambda: any("0.95 (default)" in text for text in slack_harness.bots(slack.seen("general"))))

    async def test_the_form_is_in_its_users_language(self, slack: SlackServer) -> None:
        slack.workspace.locales["Mei"], zh = "zh-CN", translator("zh")
        form = await self.open(slack)
        view = slack.views.open[form]
        assert (view["title"]["text"], view["submit"]["text"]) == (zh("Settings"), zh("Save"))
        assert (await self.submit(slack, form, top_p="2")).startswith("`top_p` 不能是 2。")
