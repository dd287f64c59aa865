"""``python -m s2q``, as launchers of several processes want it."""

from s2q.cli import main

if __name__ == "__main__":
    main()
