"""requirements/uv_install.py: uv installs with the settings that pip has."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "requirements" / "uv_install.py"


@pytest.fixture(scope="module")
def uv_install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("uv_install", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["uv_install"] = module
    spec.loader.exec_module(module)
    return module


def test_later_sections_override_earlier_ones(uv_install: ModuleType) -> None:
    lines = [
        ":env:.find-links='/from/env'",
        "global.find-links='/from/file'",
        "global.index-url='https://a/simple'",
        "install.index-url='https://b/simple'",
        "download.index-url='https://not/for/install'",
    ]
    assert uv_install.settings(lines) == {"find-links": "/from/env", "index-url": "https://b/simple"}


def test_servers_and_certificates_travel_in_the_environment(uv_install: ModuleType) -> None:
    pip = {
        "index-url": "https://user:secret@host/simple",
        "extra-index-url": "\nhttps://one/simple\nhttps://two/simple",
        "find-links": "/a /b",
        "cert": "/etc/ca.pem",
        "proxy": "http://proxy:3128",
        "timeout": "60",
    }
    result = uv_install.translate(pip)
    assert result.options == result.unknown == []
    assert result.environment == {
        "UV_INDEX_URL": "https://user:secret@host/simple",
        "UV_EXTRA_INDEX_URL": "https://one/simple https://two/simple",
        "UV_FIND_LINKS": "/a,/b",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "HTTP_PROXY": "http://proxy:3128",
        "HTTPS_PROXY": "http://proxy:3128",
        "UV_HTTP_TIMEOUT": "60",
    }


def test_what_decides_on_versions_becomes_an_option(uv_install: ModuleType) -> None:
    pip = {"constraint": "a.txt b.txt", "only-binary": ":all:", "no-index": "true", "pre": "0"}
    expected = ["--constraint=a.txt", "--constraint=b.txt", "--only-binary=:all:", "--no-index"]
    assert uv_install.translate(pip).options == expected


def test_a_setting_that_uv_lacks_is_left_to_pip(uv_install: ModuleType) -> None:
    assert uv_install.translate({"progress-bar": "off", "platform": "any"}).unknown == ["platform"]


def test_pip_settings_are_read_as_pip_reads_them(uv_install: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://file/simple\nextra-index-url =\n  a\n  b\n")
    env = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_FIND_LINKS": "/wheels"}
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    found = uv_install.settings(lines)
    assert found["index-url"] == "https://file/simple"
    assert found["extra-index-url"].split() == ["a", "b"]
    assert found["find-links"] == "/wheels"
