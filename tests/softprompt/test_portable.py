"""Modules of ours that the client and every command's help import use nothing that only POSIX systems have.

`tests/packaging/test_light_client.py` runs some commands without these names; this test reads the code of all modules,
also what only runs later.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("softprompt", "shared", "trainer_service", "inference_service")
IMPORTS = """
import json, sys, softprompt.cli.main
[getattr(softprompt, name) for name in softprompt.__all__]
print(json.dumps(sorted(sys.modules)))
"""
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NAMES = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fork", "getegid", "geteuid"),
        *("getgid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "nice", "register_at_fork"),
        *("sched_getaffinity", "setsid", "statvfs", "sysconf"),
    },
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "setitimer"},
    "loop": {"add_signal_handler"},
}


def uses(path: Path) -> set[str]:
    """POSIX-only names that a module uses anywhere, except in a branch on `sys.platform` or `hasattr`."""
    found = set[str]()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If | ast.IfExp) and any(
            word in ast.unparse(node.test) for word in ("sys.platform", "hasattr(", "os.name")
        ):
            return
        if isinstance(node, ast.Import):
            found.update(MODULES.intersection(alias.name for alias in node.names))
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.add(node.module)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in NAMES:
            found.update(f"{owner}.{node.attr}" for owner in [ast.unparse(node.value)] if node.attr in NAMES[owner])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return found


def test_what_the_client_imports_uses_nothing_that_only_unix_has(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    ours = [name for name in json.loads(done.stdout) if name.split(".")[0] in PACKAGES]
    assert len(ours) > 100
    paths = [ROOT / name.replace(".", "/") for name in ours]
    files = [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]
    found = {str(file.relative_to(ROOT)): names for file in files if (names := uses(file))}
    assert found == {}
    damaged = tmp_path / "damaged.py"
    damaged.write_text("import os\ndef later():\n    import fcntl\n    return os.getuid()\n", "utf-8")
    assert uses(damaged) == {"fcntl", "os.getuid"}, "the check sees what it looks for"
