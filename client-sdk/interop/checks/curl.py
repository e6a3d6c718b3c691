"""The session by hand of docs/PROTOCOL.md, run as it stands there: a shell, curl, and what it was answered."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from pathlib import Path
from typing import List

from .deployment import Deployment
from .documentation import PROTOCOL
from .transports import read
from .waiting import Skipped

PROGRAMS = ("curl", "bash", "python3", "sed", "xxd")
SCRIPT_TIMEOUT_S = 60.0
LAST_WAIT_MS = 500
_EXAMPLE = re.compile(r"^A session by hand.*?\n```\n(.*?)\n```\n", re.MULTILINE | re.DOTALL)
_XXD_LINE = re.compile(r"^[0-9a-f]{8}: ((?:[0-9a-f]{2,4} )+)", re.MULTILINE)


async def curl_polls_as_the_documentation_says(at: Deployment) -> str:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise Skipped(f"no {', '.join(missing)}")
    example = _EXAMPLE.search(PROTOCOL.read_text())
    assert example, "the example is gone from docs/PROTOCOL.md"
    edge = at.edge("eu")
    script, replaced = re.subn(r"EDGE=https://127\.0\.0\.1:\d+", f"EDGE=https://{edge.host}:{edge.port}", example[1])
    assert replaced == 1, example[1]
    # The last one has nothing to tell and waits: not for as long here.
    head, waits, tail = script.rpartition("20000")
    assert waits, script
    with tempfile.TemporaryDirectory() as scratch:
        said = await _run(at, Path(scratch), f"{head}{LAST_WAIT_MS}{tail}")
        welcome = read((Path(scratch) / "welcome.bin").read_bytes())
        headers = (Path(scratch) / "head.txt").read_text()
    assert [(f.req, f.WhichOneof("body")) for f in welcome] == [(1, "welcome")], welcome
    assert welcome[0].welcome.direct_salt, welcome
    answers = [read(_of_xxd(block)) for block in _halves(said)]
    assert [[(f.req, f.WhichOneof("body")) for f in frames] for frames in answers] == [[(2, "pong")]] * 2, said
    assert answers[0] == answers[1], said
    return f"{headers.split()[0]}, a Welcome, and the same Pong twice"


async def _run(at: Deployment, scratch: Path, script: str) -> str:
    """Runs a script of bash in a folder where `tern` is this deployment's program and `tern-data` its data."""
    (scratch / "tern-data").symlink_to(at.data)
    (scratch / "bin").mkdir()
    (scratch / "bin" / "tern").symlink_to(at.tern)
    pipe = asyncio.subprocess.PIPE
    shell = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", 'PATH="$PWD/bin:$PATH"\n' + script, cwd=scratch, stdout=pipe, stderr=pipe
    )
    try:
        out, err = await asyncio.wait_for(shell.communicate(), SCRIPT_TIMEOUT_S)
    except asyncio.TimeoutError:
        shell.kill()
        raise
    assert shell.returncode == 0 and not err, (shell.returncode, err.decode())
    return out.decode()


def _halves(said: str) -> List[str]:
    """The output of each xxd: its offsets begin with 0."""
    return [block for block in re.split(r"(?m)^(?=0{8}: )", said) if block]


def _of_xxd(block: str) -> bytes:
    return bytes.fromhex("".join(match[1] for match in _XXD_LINE.finditer(block)))
