"""`python -m redirector`, and what the command `redirector` runs."""

import gc

# A process of milliseconds leaves no garbage worth collecting: not while its modules are made, which takes the
# collector 2 ms, and not later, when there may be 60,000 entries to walk.
gc.disable()

from redirector.cli import main  # noqa: E402 (after the line above)

if __name__ == "__main__":
    main()
