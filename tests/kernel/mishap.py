"""The real command line, on a machine whose disk fails at the worst moment.

`python -m tests.kernel.mishap HOW ARGS…` runs `redirector ARGS` in this process. When the generation is to be renamed,
which is after the commit, the rename fails. HOW is "record": nothing worse happens; or "undo": from then on the process
has no capabilities either, so that undoing the commit fails, too. Python's audit hooks (PEP 578) are the place: what
they raise, the call raises.
"""

import errno
import os
import sys

from redirector.cli import main
from redirector.host.libc import clear_capabilities


def fail(how: str) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).endswith(".json"):
            if how == "undo":
                clear_capabilities()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    sys.addaudithook(hook)


if __name__ == "__main__":
    fail(sys.argv[1])
    del sys.argv[1]
    main()
