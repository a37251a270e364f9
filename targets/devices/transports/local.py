"""This very machine as a device."""

from __future__ import annotations

from paredown.targets.devices.device import Kind
from paredown.targets.devices.errors import UnreachableError
from paredown.targets.devices.transports.channel import Channel, ProcessChannel


class LocalTransport:
    """Starts programs here, as any other device would."""

    kind: Kind = "local"

    def __init__(self, address: str = "local:") -> None:
        self.address = address

    async def start(self, command: str) -> Channel:
        """Gives a line to sh.

        Raises:
            UnreachableError: there is no sh.
        """
        try:
            return await ProcessChannel.start("sh", "-c", command)
        except OSError as error:
            raise UnreachableError(
                f"cannot start sh: {error.strerror}", where=self.address, hint="a POSIX system is needed"
            ) from error

    async def close(self) -> None:
        """Nothing to disconnect."""
