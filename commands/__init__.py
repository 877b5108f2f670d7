"""The commands of `inferplane`, one file each: `add` describes it to argparse, `run` does it and gives the exit code.

Files import only argparse at the top, so that `--help` and errors are quick; `run` imports what it needs.
"""
