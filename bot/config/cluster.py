"""Settings of several bots on one database."""

from pydantic import Field

from bot.config.section import Section


class ClusterSection(Section):
    """Several bots on one database: one serves, the others take over when it ends."""

    enabled: bool = Field(
        default=False, description="wait while another bot serves the database, and take over once it has ended"
    )
