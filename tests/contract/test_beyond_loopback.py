"""A control service that other machines reach: TLS, its names, and which key works from where."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.certificates import TestCertificate, make_certificate, other_address
from support.control_api_server import RunningControl, running_control
from support.key_calls import named_keys
from vlserve.control.api.console.access import COOKIE
from vlserve.control.client import ControlClient
from vlserve.control.control_access import CA, KEY, URL, remote_access
from vlserve.control.named_keys import Role
from vlserve.control.open_door import refuse_open_door
from vlserve.errors import NamedKeysError, SettingsError, StackDown
from vlserve.settings import Settings
from vlserve.settings_sections import ControlSettings, GatewaySettings

ADDRESS = other_address()
other_machine = pytest.mark.skipif(ADDRESS is None, reason="this machine has loopback alone")


@pytest.fixture(scope="module")
def open_control(
    tls: TestCertificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningControl]:
    with running_control(
        tmp_path_factory.mktemp("open"),
        host="0.0.0.0",
        names=("vlserve.example",),
        tls_certificate=tls.certificate,
        tls_key=tls.key,
    ) as control:
        yield control


@pytest.fixture(scope="module")
def key(open_control: RunningControl) -> str:
    return named_keys(open_control).add("ci", [Role.REGISTER, Role.RELEASE])


@pytest.fixture
def elsewhere(open_control: RunningControl, tls: TestCertificate) -> Iterator[httpx.Client]:
    """A client whose address is not the one that it asks, as that of another machine."""
    trust = ssl.create_default_context(cafile=tls.certificate)
    transport = httpx.HTTPTransport(local_address=ADDRESS, verify=trust)
    with httpx.Client(base_url=open_control.url, transport=transport) as client:
        yield client


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **headers}


@other_machine
def test_the_owner_s_key_works_on_this_machine_alone(
    open_control: RunningControl, elsewhere: httpx.Client, key: str
) -> None:
    assert open_control.client.models() == []
    assert elsewhere.get("/models", headers=bearer(open_control.key)).status_code == 401
    assert elsewhere.get("/models", headers=bearer(key)).status_code == 200
    assert elsewhere.get("/docs").status_code == 200
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip"):
        headers = bearer(open_control.key, **{name: "127.0.0.1"})
        assert elsewhere.get("/models", headers=headers).status_code == 401
    origin = {"Origin": open_control.url}
    refusal = elsewhere.post("/console/login", data={"key": open_control.key}, headers=origin)
    assert refusal.status_code == 401
    login = elsewhere.post("/console/login", data={"key": key}, headers=origin)
    assert login.status_code == 200 and "; Secure" in login.headers["set-cookie"]
    assert login.cookies.get(COOKIE)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("vlserve.example", 200),
        ("VLSERVE.example:8090", 200),
        ("192.0.2.7:8090", 200),
        ("[2001:db8::1]:8090", 200),
        ("localhost", 200),
        ("evil.example", 403),
        ("vlserve.example.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::evil]", 403),
        ("999.0.0.1", 403),
    ],
)
def test_it_is_asked_by_its_names_and_by_addresses(
    open_control: RunningControl, tls: TestCertificate, key: str, host: str, status: int
) -> None:
    trust = ssl.create_default_context(cafile=tls.certificate)
    url = f"{open_control.url}/models"
    answer = httpx.get(url, headers=bearer(key, Host=host), verify=trust)
    assert answer.status_code == status
    page = bearer(key, Host=host, Origin=f"https://{host}")
    assert httpx.get(url, headers=page, verify=trust).status_code == status


def test_the_client_trusts_the_file_that_it_is_given(
    open_control: RunningControl, tls: TestCertificate, key: str, archives: list[Path]
) -> None:
    variables = {URL: open_control.url, KEY: key}
    access = remote_access(variables | {CA: str(tls.certificate)})
    assert access is not None
    with ControlClient.at(access) as client:
        assert client.register(archives[0]).version == 1
        event = client.history("tagger")[0]
        assert event.detail["key"] == event.detail["by"] == "ci"
    stranger = remote_access(variables)
    assert stranger is not None
    with ControlClient.at(stranger) as client, pytest.raises(StackDown, match="certificate"):
        client.models()


def test_the_owner_s_client_trusts_this_certificate_and_no_other(
    open_control: RunningControl, tmp_path: Path
) -> None:
    own_tls = make_certificate(tmp_path)
    other = Settings(
        project_dir=tmp_path,
        control=ControlSettings(
            port=int(httpx.URL(open_control.url).port or 0),
            tls_certificate=own_tls.certificate,
            tls_key=own_tls.key,
        ),
    )
    with ControlClient.of(other) as client, pytest.raises(StackDown, match="certificate"):
        client.models()


def test_an_open_address_needs_tls_and_a_named_key(tls: TestCertificate, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"control\.host 0\.0\.0\.0 is not loopback"):
        ControlSettings(host="0.0.0.0")
    for half in ({"tls_key": tls.key}, {"tls_certificate": tls.certificate}):
        for section in (ControlSettings, GatewaySettings):
            with pytest.raises(ValueError, match="go together"):
                section(**half)  # type: ignore[arg-type]
    files = {"tls_certificate": tls.certificate, "tls_key": tls.key}
    settings = Settings(
        project_dir=tmp_path,
        control=ControlSettings(host="0.0.0.0", **files),  # type: ignore[arg-type]
    )
    with pytest.raises(SettingsError, match=r"there is no named key.*vlserve keys add"):
        refuse_open_door(settings)
    keys = settings.model_store / "keys.json"
    keys.parent.mkdir()
    keys.write_text("{}x", encoding="utf-8")
    with pytest.raises(NamedKeysError, match="cannot be used"):
        refuse_open_door(settings)
    keys.unlink()
    assert settings.control_url == "https://127.0.0.1:8090"


def test_files_that_are_no_certificate_are_named(tls: TestCertificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path)
    text = tmp_path / "text"
    text.write_text("none", encoding="utf-8")
    wrong = [
        (tls.certificate, other.key),
        (text, tls.key),
        (tls.certificate, text),
        (tmp_path / "gone", tls.key),
    ]
    for certificate, key in wrong:
        settings = Settings(
            project_dir=tmp_path,
            gateway=GatewaySettings(tls_certificate=certificate, tls_key=key),
        )
        with pytest.raises(SettingsError, match=r"gateway\.tls_certificate"):
            refuse_open_door(settings)
