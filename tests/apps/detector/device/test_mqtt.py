"""MQTT against mosquitto: passwords, TLS, brokers that refuse, fall silent, die and come back."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from needs import needs
from paho.mqtt.client import CallbackAPIVersion, Client
from ports import free_port

from paredown.apps.detector.device.sinks import mqtt as module
from paredown.apps.detector.device.sinks.mqtt import PASSWORD, USER, Broker, Mqtt, broker_of
from paredown.targets.errors import DeviceError, InputError, UsageError

SEEN: Any = None
DOCUMENT = {
    "frame": 0, "detections": [{"class": "it's \"one\"", "id": 1}], "lines": {"door": {"in": 1, "out": 0}},
    "zones": {"hall": {"inside": 2}},
}  # fmt: skip


def until(true: Callable[[], Any], seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


class Mosquitto:
    """A broker that can be switched off and on.

    Args:
        folder: for its files.
        lines: of its configuration.
        host: where it listens.
    """

    def __init__(self, folder: Path, lines: str = "allow_anonymous true\n", host: str = "127.0.0.1") -> None:
        self._program, self.port, self.host = needs("mosquitto", "mosquitto"), free_port(), host
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} {host}\nuser root\npersistence false\n{lines}")
        self._process: subprocess.Popen[bytes] | None = None

    def on(self) -> None:
        command = [self._program, "-c", self._config]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers() -> bool:
            try:
                socket.create_connection((self.host, self.port), 5).close()
            except OSError:
                return False
            return True

        until(answers)

    def off(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def broker(tmp_path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.on()
    yield made
    made.off()


class Listener:
    """Subscribes to everything, and keeps it."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, str, bool]] = []
        self.acknowledged: set[str] = set()  # topics
        ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert ready.wait(30)

    def _hear(self, client: Client, data: Any, message: Any) -> None:
        if message.qos == 1:
            self.acknowledged.add(message.topic)
        self.got.append((message.topic, message.payload.decode(), message.retain))

    def of(self, topic: str) -> list[str]:
        return [payload for name, payload, _ in tuple(self.got) if name == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listener(broker) -> Iterator[Listener]:
    made = Listener(broker.port)
    yield made
    made.close()


def test_documents_summary_and_status(broker, listener):
    out = Mqtt(broker_of(f"127.0.0.1:{broker.port}/hall/door"))
    for index in range(5):
        out.write(SEEN, {**DOCUMENT, "frame": index})
    until(lambda: len(listener.of("hall/door")) == 5)
    assert listener.of("hall/door/status") == ["online"]
    summary: dict[str, Any] = {"frames": 5}
    out.close(summary)
    assert summary["mqtt"] == {"sent": 5, "lost": 0}
    until(lambda: listener.of("hall/door/summary"))
    assert json.loads(listener.of("hall/door/summary")[0]) == summary
    assert "hall/door/summary" in listener.acknowledged, "the goodbye does not overtake it"
    assert "hall/door" not in listener.acknowledged
    assert listener.of("hall/door/status") == ["online", "offline"]


def test_the_last_will_says_that_we_are_gone(broker, listener):
    out = Mqtt(broker_of(f"127.0.0.1:{broker.port}/a"))
    until(lambda: listener.of("a/status") == ["online"])
    out._client._sock.shutdown(socket.SHUT_RDWR)  # as a cable that is pulled
    out._client.loop_stop()
    until(lambda: "offline" in listener.of("a/status"))
    out.close({})


def test_a_broker_that_dies_and_comes_back(broker, listener, monkeypatch):
    told: list[str] = []
    out = Mqtt(broker_of(f"127.0.0.1:{broker.port}/a"), told.append)
    out.write(SEEN, DOCUMENT)
    broker.off()
    until(lambda: told)
    place = f"127.0.0.1:{broker.port}"
    assert told[0].startswith(f"MQTT broker {place}: lost (") and told[0].endswith("trying again")
    for _ in range(3):
        out.write(SEEN, DOCUMENT)
    broker.on()
    until(lambda: len(told) > 1)
    assert told[1].startswith(f"MQTT broker {place}: back after ")
    out.write(SEEN, DOCUMENT)
    summary: dict[str, Any] = {}
    out.close(summary)
    assert summary["mqtt"] == {"sent": 2, "lost": 3}
    assert len(told) == 2


def test_a_broker_that_is_away_at_the_start(tmp_path):
    """A file's pictures would be lost: it is an error. A camera's goes on, and the broker gets what comes."""
    mosquitto, told = Mosquitto(tmp_path), []
    where = broker_of(f"127.0.0.1:{mosquitto.port}/a")
    with pytest.raises(DeviceError, match="no MQTT broker answers: .*refused.*is a broker running there"):
        Mqtt(where)
    out = Mqtt(where, told.append, live=True)
    assert "refused" in told[0] and told[0].endswith("trying again")
    out.write(SEEN, DOCUMENT)
    mosquitto.on()
    try:
        until(lambda: len(told) == 2)
        assert "back after" in told[1]
        out.close({})
    finally:
        mosquitto.off()


def test_nothing_reached_it(tmp_path):
    out = Mqtt(broker_of(f"127.0.0.1:{free_port()}/a"), live=True)
    out.write(SEEN, DOCUMENT)
    with pytest.raises(DeviceError, match="nothing reached the MQTT broker: .*refused"):
        out.close({})


def test_a_broker_that_takes_the_connection_and_says_nothing(monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeviceError, match="lets us not in: it took the connection and said nothing"):
            Mqtt(broker_of(place))


@pytest.fixture
def locked(tmp_path) -> Iterator[Mosquitto]:
    """A broker with a user `me` whose password is `s3 cret#`."""
    passwords = tmp_path / "passwords"
    subprocess.run(
        [needs("mosquitto_passwd", "mosquitto"), "-b", "-c", passwords, "me", "s3 cret#"], check=True
    )
    made = Mosquitto(tmp_path, f"allow_anonymous false\npassword_file {passwords}\n")
    made.on()
    yield made
    made.off()


def test_a_password_from_a_file_or_the_environment(locked, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("s3 cret#\nnot this\n")
    place = f"127.0.0.1:{locked.port}/a"
    Mqtt(broker_of(f"mqtt://me@{place}", tmp_path / "secret")).close({})
    monkeypatch.setenv(USER, "me")
    monkeypatch.setenv(PASSWORD, "s3 cret#")
    Mqtt(broker_of(place)).close({})
    monkeypatch.setenv(PASSWORD, "wrong")
    for live in (False, True):
        with pytest.raises(DeviceError, match="lets us not in: Not authorized; are user and password right"):
            Mqtt(broker_of(place), live=live)


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, and a certificate and key of 127.0.0.1 that it signed."""
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("ca", "broker")]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in names]
    paths = folder / "ca.pem", folder / "broker.pem", folder / "broker.key"
    place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    for index, (name, key, path) in enumerate(zip(names, keys, paths, strict=False)):
        made = (
            x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=index == 0, path_length=None), critical=True)
            .add_extension(place, critical=False)
        )  # fmt: skip
        path.write_bytes(made.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[2].write_bytes(keys[1].private_bytes(*kind))
    return paths


def test_tls_is_checked(tmp_path):
    authority, certificate, key = certificates(tmp_path)
    broker = Mosquitto(tmp_path, f"allow_anonymous true\ncertfile {certificate}\nkeyfile {key}\n")
    broker.on()
    place = f"127.0.0.1:{broker.port}/a"
    try:
        out = Mqtt(broker_of(place, authorities=authority))
        out.write(SEEN, DOCUMENT)
        summary: dict[str, Any] = {}
        out.close(summary)
        assert summary["mqtt"] == {"sent": 1, "lost": 0}
        with pytest.raises(DeviceError, match="CERTIFICATE_VERIFY_FAILED.*--mqtt-ca FILE"):
            Mqtt(broker_of(f"mqtts://{place}"), live=True)
        (tmp_path / "no.pem").write_text("no certificate")
        with pytest.raises(InputError, match="no file of certificates"):
            Mqtt(broker_of(place, authorities=tmp_path / "no.pem"))
    finally:
        broker.off()


def test_ipv6(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback: {error}")
    broker = Mosquitto(tmp_path, host="::1")
    broker.on()
    try:
        Mqtt(broker_of(f"[::1]:{broker.port}/a")).close({})
    finally:
        broker.off()


def test_home_assistant_finds_the_sensors(broker, listener):
    """Their templates, rendered as Home Assistant does it, give what the document says."""
    jinja2 = pytest.importorskip("jinja2")
    out = Mqtt(broker_of(f"127.0.0.1:{broker.port}/hall/a", discovery="homeassistant"))
    for _ in range(3):
        out.write(SEEN, DOCUMENT)
    out.close({})
    until(lambda: listener.of("hall/a/summary"))
    configs = [json.loads(payload) for topic, payload, _ in listener.got if topic.endswith("/config")]
    values = {
        config["name"]: jinja2.Environment().from_string(config["value_template"]).render(value_json=DOCUMENT)
        for config in configs
    }
    assert values == {
        "objects": "1", "it's \"one\"": "1", "door in": "1", "door out": "0", "hall inside": "2",
    }  # fmt: skip
    assert len(configs) == 5 and len({config["unique_id"] for config in configs}) == 5
    assert {config["availability_topic"] for config in configs} == {"hall/a/status"}
    retained = Listener(broker.port)
    until(lambda: sum(topic.endswith("/config") for topic, _, kept in retained.got if kept) == 5)
    retained.close()


@pytest.mark.parametrize(
    ("address", "broker"),
    [
        ("h", Broker("h", 1883, "paredown/camera")),
        ("h:1/a/b", Broker("h", 1, "a/b")),
        ("h/a?b", Broker("h", 1883, "a?b")),
        ("mqtt://you@h", Broker("h", 1883, "paredown/camera", user="you")),
        ("mqtts://h/a", Broker("h", 8883, "a", tls=True)),
        ("[fe80::1]:2/a", Broker("fe80::1", 2, "a")),
    ],
)
def test_addresses(address, broker):
    assert broker_of(address) == broker


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "is no broker; write HOST"), (":1883", "is no broker"), ("h:x", "is no broker"),
        ("h:0", "is no broker"), ("h:70000", "is no broker"), ("http://h", "is no broker"),
        ("h/a/#", "# and . are wildcards"), ("h/+/a", "# and . are wildcards"),
        ("mqtt://me:secret@h", "seen by every user of the machine; --mqtt-password FILE"),
    ],
)  # fmt: skip
def test_what_is_no_address_is_told_in_one_line(address, said):
    with pytest.raises(UsageError, match=said) as error:
        broker_of(address)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_password_needs_its_file_and_a_user(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot read this password"):
        broker_of("me@h", tmp_path / "none")
    with pytest.raises(InputError, match="no such file of certificates"):
        broker_of("h", authorities=tmp_path / "none")
    monkeypatch.setenv(PASSWORD, "x")
    with pytest.raises(UsageError, match="a password without a user"):
        broker_of("h")
