"""What a release needs beside the wheel; nothing of it is installed with the bot."""
