"""The exhaustive check with more faults at once than the tests take time for.

    python -m tests.model --faults 1,1,1          SIGKILLs, lost messages, whims of users and disks

Memory: about 0.6 KB a world; 1,1,1 has a few million of them.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.model.daemon import Beside
from tests.model.nodes import Model
from tests.model.search import search
from tests.model.world import Faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__.splitlines()[0])
    parser.add_argument("--faults", default="1,0,1", help="SIGKILLs, lost messages, whims of users and disks")
    parser.add_argument("--panel", choices=["new", "old", "both"], default="both")
    parser.add_argument("--respond-async", action="store_true", help="the panel has its 202 before the stop")
    parser.add_argument("--beside", action="store_true", help="the destination works beside a node daemon")
    options = parser.parse_args()
    faults = Faults(*map(int, options.faults.split(",")))
    safe = True
    for panel in ("new", "old") if options.panel == "both" else (options.panel,):
        kind = Beside if options.beside else Model
        began = time.monotonic()
        found = search(kind(old_panel=panel == "old", respond_async=options.respond_async), faults)
        print(f"{panel} panel: {found.worlds} worlds, {time.monotonic() - began:.0f} s", flush=True)
        for what, way in found.wrong.items():
            safe = False
            print(f"  {what}\n    " + "\n    ".join(way), flush=True)
    return 0 if safe else 1


if __name__ == "__main__":
    sys.exit(main())
