"""A real model and adapters of it, merged in every way: ``python examples/smollm run FOLDER``."""

from command import commands

if __name__ == "__main__":
    commands()
