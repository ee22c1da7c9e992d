"""`python elsewhere.py ARGUMENTS...`: the command line in an interpreter that lacks what Windows' Python lacks.

Libraries that choose their code by `sys.platform` are imported first: what they need there, they know themselves.
"""

import os
import runpy
import signal
import sys

import filelock  # noqa: F401
import platformdirs  # noqa: F401

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2")
FUNCTIONS = (
    "fork",
    "getegid",
    "geteuid",
    "getgid",
    "getpgid",
    "getsid",
    "getuid",
    "killpg",
    "sched_getaffinity",
    "setsid",
)

sys.modules.update(dict.fromkeys(MODULES))  # type: ignore[arg-type]  # None: importing it raises ModuleNotFoundError
for name in SIGNALS:
    delattr(signal, name)
for name in FUNCTIONS:
    delattr(os, name)

import softprompt  # noqa: E402
import softprompt.local.interrupts  # noqa: E402
import softprompt.local.process  # noqa: E402
import softprompt.models  # noqa: E402

for name in softprompt.__all__:
    getattr(softprompt, name)
runpy.run_module("softprompt.cli", run_name="__main__")
