"""`python -m redirector`."""

from redirector.cli import main

if __name__ == "__main__":
    main()
