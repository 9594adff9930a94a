"""A health probe: reads the operations server over a real connection."""

import aiohttp


class HealthProbe:
    """Client of the operations server on a local port."""

    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self._http = http
        self._address = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> tuple[int, str]:
        async with self._http.get(self._address + path) as answer:
            return answer.status, await answer.text()

    async def ready(self) -> tuple[int, dict[str, str]]:
        """Return the status of /readyz, and its message for each component."""
        async with self._http.get(f"{self._address}/readyz") as answer:
            body = await answer.json()
            assert body["ready"] is (answer.status == 200)
            parts: dict[str, str] = body["parts"]
            return answer.status, parts
