"""Access lists, permissions and rate limits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.chat.access import OPERATOR, Access, SlidingWindow
from bot.config.schema import AccessSection, LimitsSection
from bot.domain import Author, ChannelKey, Exchange, IncomingMessage, Kind, Status, Usage
from tests.harness.fakes import ManualClock
from tests.harness.messages import MEI, a_message

TOM = Author("discord", "2", "Tom")


def an_access(clock: ManualClock, access: AccessSection | None = None, limits: LimitsSection | None = None) -> Access:
    return Access(access or AccessSection(), limits or LimitsSection(), clock)


def an_exchange(message: IncomingMessage) -> Exchange:
    return Exchange(1, message, Kind.CHAT, Status.OPEN, seed=1)


def unchanged(text: str) -> str:
    return text


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_everyone_is_answered_unless_the_operator_says_otherwise(clock: ManualClock) -> None:
    assert an_access(clock).admits(a_message(author=MEI))


def test_a_bot_is_never_answered(clock: ManualClock) -> None:
    assert not an_access(clock).admits(a_message(author=replace(MEI, is_bot=True)))


@pytest.mark.parametrize(
    ("section", "admitted"),
    [
        (AccessSection(allow_users=("discord:1",)), True),
        (AccessSection(allow_users=("discord:2",)), False),
        (AccessSection(allow_users=("slack:1",)), False),
        (AccessSection(allow_channels=("discord:c1",)), True),
        (AccessSection(allow_channels=("discord:c2",)), False),
        (AccessSection(allow_servers=("discord:s1",)), True),
        (AccessSection(allow_servers=("discord:s2",)), False),
        (AccessSection(allow_roles=("discord:staff",)), True),
        (AccessSection(allow_roles=("discord:boss", "slack:staff")), False),
        (AccessSection(deny_users=("discord:1",)), False),
        (AccessSection(deny_channels=("discord:c1",), allow_users=("discord:1",)), False),
        (AccessSection(deny_servers=("discord:s1",)), False),
    ],
)
def test_access_lists_name_users_channels_and_servers_by_id(
    clock: ManualClock, section: AccessSection, admitted: bool
) -> None:
    author = replace(MEI, roles=frozenset({"staff"}))
    message = a_message(author=author, channel=ChannelKey("discord", "c1", "t9"), server="s1")
    assert an_access(clock, section).admits(message) is admitted


def test_a_direct_message_matches_no_allowed_server(clock: ManualClock) -> None:
    assert not an_access(clock, AccessSection(allow_servers=("discord:s1",))).admits(a_message(author=MEI, server=None))


def test_only_the_asker_and_admins_control_an_answer(clock: ManualClock) -> None:
    access = an_access(clock, AccessSection(admins=("discord:9",)))
    exchange = an_exchange(a_message(author=MEI))
    assert access.may_control(MEI, exchange)
    assert access.may_control(Author("discord", "9", "Ada"), exchange)
    assert access.may_control(OPERATOR, exchange)
    assert not access.may_control(TOM, exchange)
    assert not access.may_control(Author("discord", "3", "Mei"), exchange), "a name proves nothing"
    assert not access.may_control(Author("slack", "1", "Mei"), exchange), "nor does the same id elsewhere"


def test_clearing_can_be_restricted_to_admins(clock: ManualClock) -> None:
    assert an_access(clock).may_clear(MEI)
    strict = an_access(clock, AccessSection(clear_by="admins", admins=("discord:2",)))
    assert not strict.may_clear(MEI)
    assert strict.may_clear(TOM)


def test_a_rate_limited_user_gets_the_time_of_the_next_request(clock: ManualClock) -> None:
    access = an_access(clock, limits=LimitsSection(requests_per_minute=2))
    asked = a_message(author=MEI)
    assert access.refusal(asked, unchanged) is None
    clock.jump(10)
    assert access.refusal(asked, unchanged) is None
    refusal = access.refusal(asked, unchanged)
    assert refusal is not None
    assert "50 s" in refusal
    assert access.refusal(a_message(author=TOM), unchanged) is None, "others are not held up"
    clock.jump(50)
    assert access.refusal(asked, unchanged) is None


def test_a_channel_has_a_separate_limit(clock: ManualClock) -> None:
    access = an_access(clock, limits=LimitsSection(requests_per_minute_channel=1))
    assert access.refusal(a_message(author=MEI), unchanged) is None
    assert "60 s" in (access.refusal(a_message(author=TOM), unchanged) or "")
    assert access.refusal(a_message(author=TOM, channel=ChannelKey("discord", "other")), unchanged) is None


def test_tokens_are_counted_by_the_hour(clock: ManualClock) -> None:
    access = an_access(clock, limits=LimitsSection(tokens_per_hour=100))
    access.spend(a_message(author=MEI), Usage(60, 39))
    assert access.refusal(a_message(author=MEI), unchanged) is None
    access.spend(a_message(author=MEI), Usage(0, 1))
    assert "60 min" in (access.refusal(a_message(author=MEI), unchanged) or "")
    clock.jump(3600)
    assert access.refusal(a_message(author=MEI), unchanged) is None


def test_a_message_without_text_or_with_too_much_is_refused_and_does_not_count(clock: ManualClock) -> None:
    access = an_access(clock, limits=LimitsSection(requests_per_minute=1, max_message_chars=10))
    assert access.refusal(a_message(author=MEI, text=" \n"), unchanged) is not None
    assert "11 characters" in (access.refusal(a_message(author=MEI, text="x" * 11), unchanged) or "")
    assert access.refusal(a_message(author=MEI, text="x" * 10), unchanged) is None


def test_a_limit_of_zero_means_no_limit(clock: ManualClock) -> None:
    access = an_access(clock, limits=LimitsSection(requests_per_minute=0, requests_per_minute_channel=0))
    assert all(access.refusal(a_message(author=MEI), unchanged) is None for _ in range(1000))


@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 40, allow_nan=False)), max_size=60),
)
def test_no_sliding_window_exceeds_the_limit(limit: int, steps: list[tuple[str, float]]) -> None:
    clock = ManualClock()
    window = SlidingWindow(limit, 60.0, clock)
    granted: dict[str, list[float]] = {}
    for key, pause in steps:
        clock.jump(pause)
        wait = window.wait(key)
        assert 0 <= wait <= 60
        if not wait:
            window.add(key)
            granted.setdefault(key, []).append(clock.now())
    for times in granted.values():
        assert all(later - first >= 60 for first, later in zip(times, times[limit:], strict=False))


def test_idle_keys_are_removed(clock: ManualClock) -> None:
    window = SlidingWindow(5, 60.0, clock)
    for key in range(1000):
        window.add(str(key))
        clock.jump(1)
    assert len(window) <= 61
