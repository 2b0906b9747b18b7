"""The checkout as a package.

Python looks for modules next to the script it was given. This module has a `__path__`, which by the import system's
own definition makes it a package, and its modules are the files around it: `concurrent_swarm.tasks` is `./tasks.py` in
a bare checkout, under the very name it has once installed. Nothing imports this file when the package is installed or
vendored.
"""

import signal
import sys
from importlib import import_module
from os.path import basename, dirname, realpath, splitext
from shlex import join

__path__ = [dirname(realpath(__file__))]


def run(script: str) -> None:
    """Run a role by its file, as in `python master.py`, under its real name. Raises SystemExit with its exit code, or a
    message if the compiled part is broken or older than what uses it."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C has no traceback of what is being imported
    try:
        role = import_module(f"{__name__}.{splitext(basename(realpath(script)))[0]}")
    except ImportError as error:
        if not basename(error.path or "").startswith("fastpath."):
            raise
        fix = join([sys.executable, "-m", "pip", "install", "-e", __path__[0]])
        raise SystemExit(f"error: the compiled part cannot be used\n  why:   {error.msg}\n  fix:   {fix}") from None
    signal.signal(signal.SIGINT, usual)
    sys.modules["__main__"].__spec__ = role.__spec__  # spawned children start from it
    raise SystemExit(role.main())
