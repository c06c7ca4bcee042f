"""The paper's tables on models of your own: ``python examples/paper three-experts FOLDER ...``."""

from reproducing import commands

if __name__ == "__main__":
    commands()
