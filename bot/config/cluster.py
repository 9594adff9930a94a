"""Settings of several bots on one database."""

from pydantic import Field

from bot.config.section import Section


class ClusterSection(Section):
    """Several bots on one database: one serves, the others take over when it ends; or they share the platforms."""

    enabled: bool = Field(
        default=False, description="wait while another bot serves the database, and take over once it has ended"
    )
    share: bool = Field(
        default=False,
        description="with enabled, on PostgreSQL: load the model and serve each platform that no other bot serves",
    )

    @property
    def is_shared(self) -> bool:
        """Whether several bots serve at the same time, each some of the platforms."""
        return self.enabled and self.share
