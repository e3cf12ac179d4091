"""Debian 12's libmariadb, for a slurmdbd that ends at its start with this machine's.

With libmariadb 11.8.9 (Debian 13 and sid) slurmdbd 24.11 and 26.05 end with "Number of columns in result". The
older library is unpacked into the cache of the tests and not installed: nothing on this machine changes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.roots import build

SYMPTOM = "Number of columns in result"
"""In slurmdbd's log, where the library is the one that does not work."""


def debian12() -> Path:
    """The folder that holds the older libmariadb.so.3, fetched once (some seconds). Raises build.CannotBuild."""

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as own:
            sources, lists = Path(own) / "sources.list", Path(own) / "lists"
            (lists / "partial").mkdir(parents=True)
            sources.write_text(f"deb {build.mirror()} bookworm main\n")
            apt = ["apt-get", "-qq", "-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=/dev/null"]
            apt += ["-o", f"Dir::State::Lists={lists}", "-o", "APT::Sandbox::User=root"]
            apt += ["-o", "APT::Default-Release=bookworm"]  # apt refuses a machine's own that these sources do not have
            build.run(*apt, "update")
            build.run(*apt, "download", "libmariadb3=1:10.11.*", cwd=Path(own))
            (package,) = Path(own).glob("libmariadb3_*.deb")
            folder.mkdir()
            build.run("dpkg-deb", "--extract", str(package), str(folder))

    unpacked = build.once("libmariadb", "Debian 12's libmariadb, for slurmdbd", make, print)
    (library,) = unpacked.glob("usr/lib/*/libmariadb.so.3")
    return library.parent
