"""The bot's own words in other languages; `python -m bot.chat.locale.update` keeps them in step with the code."""
