"""A chat whose model runs on a device; the terminal is here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from paredown.apps.chat.device.chat import as_arguments
from paredown.apps.chat.device.generation.session import Done, Event, never
from paredown.apps.chat.device.serve import from_json
from paredown.pipeline.device.language.unpacked import bring
from paredown.pipeline.store.event import Event as Progress
from paredown.pipeline.store.event import Tell, nobody
from paredown.targets.devices.device import python_of
from paredown.targets.errors import DeviceError, InputError, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from paredown.pipeline.bundle.archive import Bundle
    from paredown.targets.devices.device import Device, Dialogue

HEAR_S = 0.1  # how late a Ctrl-C is heard
LONGEST_S = 24 * 3600.0  # a chat may take so long


class RemoteChat:
    """See `Chat`, which it is one of.

    Args:
        program: `apps.chat.device.chat --serve` on a device.
        where: names the device in errors.

    Raises:
        InputError: the device says that the bundle's model cannot run there.
        DeviceError: the device failed, or says what we do not understand.
    """

    def __init__(self, program: Dialogue, where: str) -> None:
        self._program, self._where, self._number = program, where.rstrip(":"), 0
        self.description = f"{self._reply()['hello']}; on {self._where}"

    def answer(self, text: str, cancelled: Callable[[], bool] = never) -> Iterator[Event]:
        """Answers; see `Chat.answer`.

        Raises:
            InputError: the device says that it cannot be answered.
            DeviceError: the device failed.
        """
        self._number += 1
        self._send({"prompt": text, "number": self._number})
        asked = False
        while True:
            if cancelled() and not asked:
                self._send({"interrupt": self._number})
                asked = True
            with contextlib.suppress(TimeoutError):
                event = self._event(self._reply(HEAR_S))
                yield event
                if isinstance(event, Done):
                    return

    def reset(self) -> None:
        """Forgets everything that was said."""
        self._send({"reset": True})

    def _send(self, request: dict[str, Any]) -> None:
        self._program.send(json.dumps(request))

    def _reply(self, seconds: float = LONGEST_S) -> dict[str, Any]:
        """The next reply that is no complaint.

        Raises:
            TimeoutError: none came.
        """
        try:
            reply: dict[str, Any] = json.loads(self._program.receive(seconds))
        except EOFError:
            raise DeviceError("the chat ended by itself", where=self._where) from None
        except ValueError as error:
            raise self._strange(error) from error
        if "error" in reply:
            raise InputError(reply["error"], where=self._where)
        return reply

    def _event(self, reply: dict[str, Any]) -> Event:
        try:
            return from_json(reply)
        except (KeyError, TypeError) as error:
            raise self._strange(error) from error

    def _strange(self, error: Exception) -> DeviceError:
        return DeviceError(f"the chat there says nothing that can be read: {error!r}", where=self._where)


@contextlib.contextmanager
def on_device(
    bundle: Bundle, device: Device, options: Namespace, tell: Tell = nobody
) -> Iterator[RemoteChat]:
    """Brings a bundle to a device and starts a chat there, which ends in the end.

    Args:
        bundle: of a language model.
        device: connected.
        options: of `apps.chat.device.chat`.
        tell: hears what is being brought there.

    Raises:
        UsageError: the bundle has no program for the runtime that is asked for.
        InputError: the model cannot run there.
        DeviceError: the device failed.
    """
    models = {str(model.runtime): model.file for model in bundle.manifest.language}
    runtime = options.runtime or next(iter(models))
    if runtime not in models:
        hint = f"it has one for {' and '.join(models)}"
        raise UsageError(f"no program for {runtime}", where=bundle.path, hint=hint)
    bring(bundle, device, {runtime}, tell)
    words = [*as_arguments(options), f"--runtime={runtime}", *(["--no-times"] if device.emulated else [])]
    tell(Progress(f"model on {device.address}", "running"))
    command = [python_of(device), "-m", "paredown.apps.chat.device.chat", "--serve", *words]
    with device.talk(command, timeout=LONGEST_S) as program:
        yield RemoteChat(program, device.address)
