"""`python -m wrangan_cli`: the same as the console script `wrangan`."""

from wrangan_cli.app import main

if __name__ == "__main__":
    main()
