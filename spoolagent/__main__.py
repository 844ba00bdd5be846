"""`python -m spoolagent` is the command line."""

from spoolagent.cli.main import main

if __name__ == "__main__":
    main()
