"""The command line in processes of its own, and what belongs to one of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "flows.cli"]


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=env, cwd=ROOT)


def start(arguments: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """The command in a process group of its own, so that what it leaves behind can be found."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
        start_new_session=True,
    )


def children(group: int) -> list[str]:
    """Command lines of the processes in a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[2]) == group:
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


def listeners(group: int) -> set[str]:
    """Local addresses on which processes of a group listen."""
    inodes = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[2]) != group:
                    continue
                descriptors = list((entry / "fd").iterdir())
            except OSError:
                continue
            links = []
            for descriptor in descriptors:
                # One that is closed while they are listed leaves the others.
                with suppress(OSError):
                    links.append(os.readlink(descriptor))
            inodes |= {match[1] for link in links if (match := re.match(r"socket:\[(\d+)\]", link))}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(fields[1].split(":")[0])
    return addresses
