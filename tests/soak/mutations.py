"""Read thousands of damaged files: no exception but those that name the file, no crash, no hang, bounded memory.

    python tests/soak/mutations.py [--files 2000] [--first 0]

The last line is JSON: ``images`` (files that still gave one), ``refused`` (files that gave a reason), ``faults`` (what
must not happen, with the number that makes the file again), ``slowest`` (seconds of one file), ``peak_gb``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from damaged_files import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    found = run(options.files, options.first)
    for number, name, what in found["faults"]:
        print(f"{number:6d}  {name:12s}  {what}")
    print(json.dumps(found))
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
