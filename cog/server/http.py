"""Replaces the process by the Bun server: what `python -m cog.server.http` starts in this folder.

The images that the cog CLI generates run that command in /src, and `python -m` looks in the working
directory first, so this file wins over the SDK's. exec keeps the process id: signals reach Bun directly.
"""

import os
import sys
from pathlib import Path

# The sources are there, but no Bun: the exit status a shell gives for "command not found".
NOT_FOUND = 127

if __name__ == "__main__":
    predict = Path(__file__).resolve().parents[2] / "predict.ts"
    command = ["bun", "run", str(predict), *sys.argv[1:]]
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        print(
            "cog-comfyui: bun is not on PATH, so the server cannot start. "
            "Build with this repository's cog.yaml, which installs it.",
            file=sys.stderr,
        )
        sys.exit(NOT_FOUND)
