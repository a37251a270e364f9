"""A session for another machine: requests on standard input, replies on standard output, JSON one a line.

Requests: `{"prompt": text, "number": n}`; `{"interrupt": n}` ends the answer to it; `{"reset": true}`.
Replies: first `{"hello": description}`; to a prompt any number of `{"text": ...}` and `{"forgot": n}`, then
`{"done": why, "stats": {...}}` or `{"error": line, "exit_code": n}`. All of it ASCII: no line is cut within a
character, whatever the device's locale.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, TextIO

from paredown.apps.chat.device.generation.session import Chat, Done, Event, Forgot, Text
from paredown.apps.chat.device.generation.stats import Stats
from paredown.targets.errors import InputError, ParedownError

UNREAD = 1  # exit code


def serve(open_chat: Callable[[], Chat]) -> int:
    """Serves this process's standard input until it ends; returns the exit code.

    Args:
        open_chat: makes the session; what runtimes print meanwhile goes to standard error.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return Server(replies).serve(open_chat, sys.stdin)


class Server:
    """Answers requests.

    Args:
        replies: where to.
    """

    def __init__(self, replies: TextIO) -> None:
        self._replies = replies
        self._requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._interrupted = 0.0  # the number of the last answer that is to end

    def serve(self, open_chat: Callable[[], Chat], requests: Iterable[str]) -> int:
        """Answers until the requests end, which a thread hears: an answer can be interrupted."""
        threading.Thread(target=self._hear, args=(requests,), daemon=True).start()
        try:
            try:
                chat = open_chat()
            except ParedownError as error:
                self._complain(error)
                return error.exit_code
            self._reply({"hello": chat.description})
            while (request := self._requests.get()) is not None:
                if "reset" in request:
                    chat.reset()
                    continue
                try:
                    self._answer(chat, *_asked(request))
                except ParedownError as error:
                    self._complain(error)
        except BrokenPipeError:  # nobody reads the answers any more
            return UNREAD
        return 0

    def _hear(self, requests: Iterable[str]) -> None:
        for line in requests:
            try:
                request = json.loads(line)
            except ValueError:
                request = None
            if not isinstance(request, dict):
                request = {"strange": line}
            if isinstance(request.get("interrupt"), int):
                self._interrupted = request["interrupt"]
            else:
                self._requests.put(request)
        self._interrupted = math.inf  # nobody is there any more
        self._requests.put(None)

    def _answer(self, chat: Chat, prompt: str, number: int) -> None:
        for event in chat.answer(prompt, lambda: self._interrupted >= number):
            self._reply(_as_json(event))

    def _complain(self, error: ParedownError) -> None:
        self._reply({"error": str(error), "exit_code": error.exit_code})

    def _reply(self, document: dict[str, Any]) -> None:
        self._replies.write(json.dumps(document) + "\n")
        self._replies.flush()


def _asked(request: dict[str, Any]) -> tuple[str, int]:
    """The prompt of a request and its number.

    Raises:
        InputError: it is none.
    """
    prompt, number = request.get("prompt"), request.get("number")
    if not isinstance(prompt, str) or not isinstance(number, int):
        what = f"no request: {json.dumps(request)[:100]}"
        raise InputError(what, hint="one JSON object a line, with prompt and number")
    return prompt, number


def _as_json(event: Event) -> dict[str, Any]:
    match event:
        case Text():
            return {"text": event.text}
        case Forgot():
            return {"forgot": event.exchanges}
        case Done():
            return {"done": event.why, "stats": asdict(event.stats)}


def from_json(reply: dict[str, Any]) -> Event:
    """The event of a reply to a prompt.

    Raises:
        KeyError, TypeError: it is none.
    """
    if "text" in reply:
        return Text(reply["text"])
    if "forgot" in reply:
        return Forgot(reply["forgot"])
    return Done(reply["done"], Stats(**reply["stats"]))
