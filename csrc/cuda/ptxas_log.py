# SPDX-License-Identifier: Apache-2.0
"""Runs nvcc and keeps what ptxas says of each kernel in a file beside the object.

CMake puts this before every nvcc call. A build that compiles one file again would otherwise have the
registers and the spills of that file alone.
"""

import re
import subprocess
import sys

NOISE = re.compile(r"ptxas info|Function properties for|bytes stack frame|Compile time =|^\s*$")


def main(command: list[str]) -> int:
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    lines = done.stderr.splitlines(keepends=True)
    if "-c" in command and "-o" in command:
        with open(command[command.index("-o") + 1] + ".ptxas", "w") as log:
            log.writelines(lines)
    sys.stderr.writelines(line for line in lines if not NOISE.search(line))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
