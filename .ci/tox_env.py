"""What the environments in tox.ini need beyond tox: one shared torch, sibling distributions, globs.

    tox_env.py install FOLDER...      share torch, then pip install the distributions in these folders
    tox_env.py run MODULE ARG...      python -m MODULE ARG...
    tox_env.py scripts FILE...        python FILE, one after the other

Globs are expanded here because tox starts commands without a shell, and those that match nothing vanish, as with
bash's nullglob. The word PLUGIN stands for NAME in an environment called plugin-NAME.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(*args: str) -> None:
    """Run this environment's interpreter; its failure is ours."""
    if code := subprocess.call([sys.executable, *args], cwd=ROOT):
        sys.exit(code)


def expand(arg: str) -> list[str]:
    arg = arg.replace("PLUGIN", os.environ["TOX_ENV_NAME"].removeprefix("plugin-"))
    return sorted(glob.glob(arg, recursive=True)) if glob.has_magic(arg) else [arg]


def dependencies(folder: Path) -> list[str]:
    declared: list[str] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    return declared


def siblings(folder: Path) -> Iterator[Path]:
    """The folders of the plugins that a distribution depends on, and those that they depend on."""
    for dependency in dependencies(folder):
        if match := re.match(r"itoflow-([\w-]+)", dependency):
            yield ROOT / "plugins" / match[1]
            yield from siblings(ROOT / "plugins" / match[1])


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, and let go by the system when that process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def share_torch() -> None:
    """Install torch once for all environments, and let this one see it through a `.pth` file.

    The `.pth` puts the folder behind site-packages: what an environment installs itself wins, and apart from torch and
    torch's own dependencies it sees only what it installs. pip counts what it sees there as installed.
    """
    requirement = next(entry for entry in dependencies(ROOT) if re.match(r"torch\b", entry))
    constraint = Path(os.environ.get("PIP_CONSTRAINT", ""))
    wanted = f"{requirement}\n{constraint.read_text() if constraint.is_file() else constraint}"
    folder = Path(os.environ["TOX_WORK_DIR"], "shared-torch", sys.implementation.cache_tag)
    stamp = folder / "installed-for.txt"
    with lock(folder.with_suffix(".lock")):
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            python("-m", "pip", "install", "--quiet", "--target", str(folder), requirement)
            stamp.write_text(wanted)
    Path(sysconfig.get_path("purelib"), "shared-torch.pth").write_text(f"{folder}\n")


def install(folders: list[str]) -> None:
    # A folder without a project is what git leaves of a removed plugin: caches.
    chosen = [ROOT / folder for folder in folders if (ROOT / folder / "pyproject.toml").exists()]
    share_torch()
    paths = {str(path) for folder in chosen for path in [folder, *siblings(folder)]}
    # An environment that lists hatchling builds with it, which takes a fifth of the time of an isolated build.
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    python("-m", "pip", "install", "--quiet", *isolation, *sorted(paths))


def main(verb: str, *args: str) -> None:
    expanded = [path for arg in args for path in expand(arg)]
    if verb == "install":
        install(expanded)
    elif verb == "run":
        python("-m", *expanded)
    elif verb == "scripts":
        for script in expanded:
            print(f"== {script}", flush=True)
            python(script)


if __name__ == "__main__":
    main(*sys.argv[1:])
