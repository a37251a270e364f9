"""What a camera saw, published to an MQTT broker; with TLS, a password, and Home Assistant's discovery."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paredown.apps.detector.device.processor import FrameResult
from paredown.targets.errors import DeviceError, InputError, UsageError

PORT, TLS_PORT, TOPIC, WAIT_S = 1883, 8883, "paredown/camera", 5.0
KEEPALIVE_S = 15  # a broker that says nothing for longer is taken for lost
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1, 30  # between two attempts to connect again; paho doubles them
USER, PASSWORD = "PAREDOWN_MQTT_USER", "PAREDOWN_MQTT_PASSWORD"
FORM = "write HOST[:PORT][/TOPIC], or mqtts://[USER@]HOST[:PORT][/TOPIC] for TLS"

Log = Callable[[str], None]


@dataclass(frozen=True)
class Broker:
    """Where and how to publish.

    Attributes:
        host: name or address.
        port: of its listener.
        topic: of the documents.
        tls: whether the connection is encrypted and the broker's certificate checked.
        authorities: a file of certificates to check it with; None = the system's.
        user: name there; empty = none.
        password: likewise.
        discovery: the first level of Home Assistant's discovery topics; empty = none.
    """

    host: str
    port: int
    topic: str
    tls: bool = False
    authorities: Path | None = None
    user: str = ""
    password: str = ""
    discovery: str = ""

    @property
    def place(self) -> str:
        """Host and port, for people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def broker_of(
    address: str,
    password_file: Path | None = None,
    authorities: Path | None = None,
    discovery: str = "",
) -> Broker:
    """Reads what a user writes; user and password may come from the environment.

    Args:
        address: see `FORM`.
        password_file: its first line is the password.
        authorities: see `Broker`.
        discovery: likewise.

    Raises:
        UsageError: it is no address, the topic has a wildcard, or the address holds a password.
        InputError: the password's file, or the authorities' one, cannot be read.
    """
    tls = address.startswith("mqtts://")
    where = "--mqtt"
    try:
        found = urlsplit(address if "://" in address else f"mqtt://{address}", allow_fragments=False)
        host, port = found.hostname or "", found.port
    except ValueError:
        host, port = "", None
    if not host or found.scheme not in ("mqtt", "mqtts") or " " in host or port == 0:
        raise UsageError(f"`{_hidden(address)}` is no broker", where=where, hint=FORM)
    if found.password is not None:
        what = "a password on a command line is seen by every user of the machine"
        raise UsageError(what, where=where, hint=f"--mqtt-password FILE, or the variable {PASSWORD}")
    topic = address.partition("://")[2] or address  # `?` is a letter of a topic
    topic = topic.partition("/")[2] or TOPIC
    for name, text in (("--mqtt", topic), ("--mqtt-discovery", discovery)):
        if set("#+\0") & set(text):
            what = f"`{text}`: # and + are wildcards, which nobody can publish to"
            raise UsageError(what, where=name, hint="name one topic")
    if authorities is not None:
        tls = True
        if not authorities.is_file():
            raise InputError("no such file of certificates", where=authorities)
    password = os.environ.get(PASSWORD, "")
    if password_file is not None:
        try:
            password = (password_file.read_text().splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read this password: {error}", where=password_file) from error
    user = found.username or os.environ.get(USER, "")
    if password and not user:
        raise UsageError("a password without a user", where=where, hint=f"mqtt://USER@HOST, or {USER}")
    given = port or (TLS_PORT if tls else PORT)
    return Broker(host, given, topic.rstrip("/"), tls, authorities, user, password, discovery.strip("/"))


class Mqtt:
    """Every picture's document under one topic, at most once; none while the broker is away, which is told.

    `TOPIC/status` holds `online`, or `offline` once we are gone, however that came.

    Args:
        broker: where to.
        log: told when it is lost, when it is back, and what it refuses.
        live: whether the source goes on without us: then a broker that cannot be reached now is tried again.

    Raises:
        UsageError: paho-mqtt is not installed.
        InputError: the certificates are none.
        DeviceError: the broker refuses us, or, of a source that ends, does not answer.
    """

    picture = False

    def __init__(self, broker: Broker, log: Log = lambda line: None, live: bool = False) -> None:
        try:
            from paho.mqtt.client import CallbackAPIVersion, Client
        except ImportError:
            what, hint = "paho-mqtt is not installed here", "`pip install paho-mqtt`"
            raise UsageError(what, where="--mqtt", hint=hint) from None
        self._broker, self._log = broker, log
        self._answer, self._said = threading.Event(), ""
        self._gone_at: float | None = None
        self._over = self._was_there = False
        self._sent = self._lost = 0
        self._told: set[str] = set()  # discovery topics
        client: Any = Client(CallbackAPIVersion.VERSION2)
        self._client = client
        client.connect_timeout = WAIT_S
        client.reconnect_delay_set(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        client.will_set(f"{broker.topic}/status", "offline", qos=1, retain=True)
        if broker.user:
            client.username_pw_set(broker.user, broker.password)
        if broker.tls:
            try:
                client.tls_set(ca_certs=broker.authorities and str(broker.authorities))
            except OSError as error:  # that of TLS is one, too
                raise InputError(f"no file of certificates: {error}", where=broker.authorities) from error
        client.on_connect, client.on_disconnect = self._connected, self._disconnected
        self._open(live)

    def write(self, seen: FrameResult, document: dict[str, Any]) -> None:
        """Publishes it; see `Output`."""
        if not self._client.is_connected():
            self._lost += 1
            return
        if self._broker.discovery:
            self._announce(document)
        if self._client.publish(self._broker.topic, json.dumps(document)).rc:  # it has gone this moment
            self._lost += 1
        else:
            self._sent += 1

    def close(self, summary: dict[str, Any]) -> None:
        """Publishes the summary under TOPIC/summary and says goodbye; adds what was lost to it."""
        summary["mqtt"] = {"sent": self._sent, "lost": self._lost}
        self._over = True
        if self._client.is_connected():
            topic = self._broker.topic
            self._client.publish(f"{topic}/status", "offline", retain=True)
            # Acknowledged: who closes a connection with answers unread resets it, and what came last is lost.
            last = self._client.publish(f"{topic}/summary", json.dumps(summary), qos=1)
            last.wait_for_publish(WAIT_S)
        self._client.disconnect()
        self._client.loop_stop()
        if self._lost and not self._was_there:
            where = self._broker.place
            raise DeviceError(f"nothing reached the MQTT broker: {self._said or 'it was away'}", where=where)

    def _open(self, live: bool) -> None:
        place = self._broker.place
        try:
            self._client.connect(self._broker.host, self._broker.port, KEEPALIVE_S)
        except (OSError, ValueError) as error:
            self._said = str(error)
            if not live or _of_tls(error):
                hint = "nothing took the connection: is a broker running there, and is the port right?"
                if _of_tls(error):
                    hint = "--mqtt-ca FILE names who vouches for its certificate"
                raise DeviceError(f"no MQTT broker answers: {error}", where=place, hint=hint) from error
            self._log(f"MQTT broker {place}: {error}, trying again")
            self._gone_at = time.monotonic()
            self._client.connect_async(self._broker.host, self._broker.port, KEEPALIVE_S)
            self._client.loop_start()
            return
        self._client.loop_start()
        if not self._answer.wait(WAIT_S):
            self._said = f"it took the connection and said nothing for {WAIT_S:g} s"
        if not self._client.is_connected():
            refused = self._answer.is_set()
            if live and not refused:
                self._log(f"MQTT broker {place}: {self._said}, trying again")
                self._gone_at = time.monotonic()
                return
            self._over = True
            self._client.disconnect()
            self._client.loop_stop()
            hint = "are user and password right?" if refused else "does it speak MQTT, and without TLS?"
            raise DeviceError(f"the MQTT broker lets us not in: {self._said}", where=place, hint=hint)

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        place = self._broker.place
        if reason.is_failure:
            if self._said != str(reason) and self._answer.is_set():
                self._log(f"MQTT broker {place} refuses us: {reason}")
            self._said = str(reason)
        else:
            self._told.clear()  # a broker that began anew has forgotten
            client.publish(f"{self._broker.topic}/status", "online", qos=1, retain=True)
            if self._gone_at is not None:
                self._log(f"MQTT broker {place}: back after {time.monotonic() - self._gone_at:.1f} s")
            self._gone_at, self._said, self._was_there = None, "", True
        self._answer.set()

    def _disconnected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._over or not self._was_there or self._gone_at is not None:
            return
        self._gone_at, self._said = time.monotonic(), str(reason)
        self._log(f"MQTT broker {self._broker.place}: lost ({reason}), trying again")

    def _announce(self, document: dict[str, Any]) -> None:
        """Tells Home Assistant what there is to show, each thing once: classes when first seen."""
        self._sensor("objects", "objects", "{{ value_json.detections | count }}")
        for name in {each["class"] for each in document["detections"]}:
            chosen = "{{ value_json.detections | selectattr('class', 'eq', %s) | list | count }}"
            self._sensor(f"class {name}", name, chosen % _quoted(name))
        for kind, keys in (("lines", ("in", "out")), ("zones", ("inside",))):
            for name, values in document.get(kind, {}).items():
                for key in (key for key in keys if key in values):
                    place = "".join(f"[{_quoted(part)}]" for part in (kind, name, key))
                    value = f"{{{{ value_json{place} }}}}"
                    self._sensor(f"{kind} {name} {key}", f"{name} {key}", value)

    def _sensor(self, id: str, name: str, template: str) -> None:
        topic, node = self._broker.topic, _plain(self._broker.topic)
        place = f"{self._broker.discovery}/sensor/{node}/{_plain(id)}/config"
        if place in self._told:
            return
        self._told.add(place)
        config = {
            "name": name, "unique_id": f"{node}_{_plain(id)}", "state_topic": topic,
            "value_template": template, "availability_topic": f"{topic}/status",
            "device": {"identifiers": [node], "name": topic, "manufacturer": "paredown"},
        }  # fmt: skip
        self._client.publish(place, json.dumps(config), qos=1, retain=True)


def _of_tls(error: BaseException) -> bool:
    """Whether TLS says it. What nobody has imported says nothing: some boards have no library for it."""
    ssl = sys.modules.get("ssl")
    return ssl is not None and isinstance(error, ssl.SSLError)


def _plain(text: str) -> str:
    """Letters, digits and dashes, as Home Assistant's topics want them; different texts stay different."""
    return re.sub(r"[^A-Za-z0-9-]", lambda found: f"_{ord(found[0]):x}_", text)


def _quoted(text: str) -> str:
    """A text in a template."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _hidden(address: str) -> str:
    return re.sub(r":[^/@:]*@", ":***@", address)
