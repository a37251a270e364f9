"""The chat's own program with a model that repeats what it is told, in a folder that `chat_folder` makes.

WAY: `echo`; `endless` answers; `stuck`, whose model never comes back; `raw`, which says what a terminal would
obey; `half` a character; `nan`. CONTEXT: tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from chat_model import Echo, small_tokenizer

from paredown.apps.chat.device.tokens.tokens import Tokens

RAW = "red \x1b[31m, title \x1b]0;x\x07, up \x1b[A, c1 \x9b2J, back \r\x08, run \u202eback, e\u0301 漢\n"


def chat_folder(folder: Path) -> Path:
    """Makes an unpacked bundle of it, without a model."""
    from paredown.apps.chat.device.tokens.pack import pack  # a board does without

    files = {"tokenizer.npz": pack(small_tokenizer().encode()), "app.json": b'{"template": "gemma"}'}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    members = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"members": members}))
    return folder


def open_model(folder: Path, runtime: str | None, threads: int) -> Echo:
    tokens = Tokens((folder / "tokenizer.npz").read_bytes())
    model, way = Echo(tokens, int(os.environ.get("CONTEXT", "256"))), os.environ.get("WAY", "echo")
    says = {"endless": "and on " * 10_000, "raw": RAW}
    if way in says:
        said = tokens.encode(says[way])
        model.says = lambda turn: said
    if way == "half":
        model.says = lambda turn: tokens.encode("漢")[:2]
    if way == "stuck":
        model.delay_s = 1000.0
        feed = model.feed
        model.feed = lambda part: (Path("stuck").touch(), feed(part))[1]  # a test waits for it
    if way == "nan":
        good = model.feed
        model.feed = lambda part: np.full_like(good(part), np.nan)
    return model


if __name__ == "__main__":
    sys.modules["paredown.apps.chat.device.models"] = SimpleNamespace(open_model=open_model)  # type: ignore[assignment]
    from paredown.apps.chat.device.chat import main

    sys.exit(main(sys.argv[1:]))
