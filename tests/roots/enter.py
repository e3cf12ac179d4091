"""Runs a command in a root: the tests' Python, this clone and nothing else of this machine are bound into it.

All mounts are made in a mount namespace, and all processes run in a PID namespace: when the command ends, or is killed,
the kernel unmounts and ends everything. The root itself is read-only below an overlay in memory, so no test changes it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Arguments: the root, an empty folder for mounts, the folder for /tmp, the working directory, the number of folders to
# bind, these folders, and the command. pivot_root, since container runtimes cannot make user namespaces in a chroot.
_ENTER = r"""
root=$1 mounts=$2 tmp=$3 cwd=$4 count=$5; shift 5
mount -t tmpfs -o mode=755 tmpfs "$mounts"
mkdir "$mounts/upper" "$mounts/work" "$mounts/root"
new=$mounts/root
mount -t overlay overlay -o "lowerdir=$root,upperdir=$mounts/upper,workdir=$mounts/work" "$new"
cp /etc/resolv.conf /etc/hosts "$new/etc/"
mount --rbind /dev "$new/dev"
mount --rbind /sys "$new/sys"
mount -t proc proc "$new/proc"
mount --bind "$tmp" "$new/tmp"
for folder in "${@:1:count}"; do
    mkdir -p "$new$folder"
    mount --rbind "$folder" "$new$folder"
done
shift "$count"
mkdir "$new/old"
pivot_root "$new" "$new/old"
cd "$cwd"
umount --lazy /old
rmdir /old
status=0
"$@" || status=$? # not exec: this shell is the first process of the namespace, which adopts orphans and ends them
exit "$status"
"""


def bound() -> list[Path]:
    """The folders of this machine that the tests need: this clone, the Python that runs, and what it imports from."""
    folders = [ROOT, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]]
    folders += [Path(entry) for entry in sys.path if entry]
    real = sorted({folder.resolve() for folder in folders if folder.is_dir()})
    return [folder for folder in real if not any(other in folder.parents for other in real)]


def run(root: Path, words: Sequence[str], extra: Sequence[Path] = ()) -> int:
    """Runs `words` in `root`, in this working directory; returns its exit code. /tmp starts empty and is removed.

    The folders `extra` are bound, too.
    """
    folders = [*bound(), *extra]
    with tempfile.TemporaryDirectory(prefix="launcher-root-") as own:
        mounts, tmp = Path(own) / "mounts", Path(own) / "tmp"
        mounts.mkdir()
        tmp.mkdir()
        tmp.chmod(0o1777)
        arguments = [str(root), str(mounts), str(tmp), os.getcwd(), str(len(folders)), *map(str, folders)]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *unshare, "bash", "-euc", _ENTER, "bash", *arguments, *words]
        )
        try:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:  # the command gets it from the terminal as well, and ends in its own order
                    continue
        finally:
            process.kill()
            process.wait()
