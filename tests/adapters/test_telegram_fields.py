"""Damaged updates of Telegram: parts of the wrong type."""

from structlog.testing import capture_logs

from bot.adapters.telegram.fields import Fields


def test_of_many_damaged_parts_a_few_are_logged() -> None:
    entities = [{"type": number, "offset": "0"} for number in range(100)]
    message = Fields({"message": {"text": "hi", "entities": [*entities, 7, 8]}}, "update").part("message")
    assert message is not None
    with capture_logs() as logged:
        assert [entity.text("type") or entity.number("offset") for entity in message.parts("entities")] == [None] * 100
    assert [line["part"] for line in logged] == [
        "update.message.entities",
        *["update.message.entities.type", "update.message.entities.offset"] * 2,
    ]
    assert [line["count"] for line in logged] == [2, 1, 1, 1, 1]
