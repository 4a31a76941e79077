# SPDX-License-Identifier: MIT
"""What the commands share: numbers of a command line, failures in one line."""
import argparse
import sys

# what a file that lies about itself ends in, where no check named it
HOSTILE = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, RuntimeError,
           TypeError)


def whole(least, most=1 << 30):
    """A type for argparse: a whole number from least to most."""

    def parse(text):
        try:
            n = int(text)
        except ValueError:
            n = least - 1
        if not least <= n <= most:
            raise argparse.ArgumentTypeError(f"{text}: a number from {least} to {most} is wanted")
        return n

    return parse


def run(prog, work, *files):
    """work()'s exit status: 0, or 1 with one line that names what failed, or the files."""
    try:
        work()
        return 0
    except (OSError, ValueError) as e:
        said = str(e)
    except HOSTILE as e:
        said = f"{' or '.join(f for f in files if f)} cannot be used: {type(e).__name__}: {e}"
    print(f"{prog}: {' '.join(said.split())}", file=sys.stderr)
    return 1
