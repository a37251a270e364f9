"""The page's JavaScript, called from Python: one node process that answers line by line."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from needs import needs

_ARRAYS = {"float32": "Float32Array", "uint8": "Uint8Array"}
_DTYPES = {array: dtype for dtype, array in _ARRAYS.items()}


class Node:
    """A running node; `node("decode.js", "detect", ...)` calls an exported function."""

    def __init__(self) -> None:
        program = needs("node", "nodejs")
        script = Path(__file__).with_name("web_node.mjs")
        self._process = subprocess.Popen(
            [program, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __call__(self, module: str, call: str, *arguments: Any) -> Any:
        """What the function returns; numpy arrays travel as typed arrays, flat.

        Raises:
            ValueError: it throws.
        """
        assert self._process.stdin and self._process.stdout
        request = {"module": module, "call": call, "arguments": arguments}
        self._process.stdin.write(json.dumps(request, default=_encoded) + "\n")
        answer = json.loads(self._process.stdout.readline(), object_hook=_decoded)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def picture(image: np.ndarray) -> dict[str, Any]:
    """An image (H, W, 3) BGR uint8 as the page has it: an ImageData, RGBA."""
    height, width = image.shape[:2]
    rgba = np.dstack([image[..., ::-1], np.full((height, width), 255, np.uint8)])
    return {"data": rgba, "width": width, "height": height}


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": _ARRAYS[value.dtype.name], "base64": data}
    raise TypeError(type(value).__name__)


def _decoded(value: dict[str, Any]) -> Any:
    if "base64" not in value:
        return value
    return np.frombuffer(base64.b64decode(value["base64"]), _DTYPES[value["array"]])
