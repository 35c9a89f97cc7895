"""Speed and memory of the real program, beside the tools that everybody has; `python -m integration.bench --help`.

Every figure is taken from whole processes on one machine, ours and the others' alternating within one run, because
figures of different runs on a shared machine cannot be compared; ratios within a run can.

    volumes   what is moved: a world (sidecar.demo.world), or many small files
    ours      two nodes as in production (`serve`), from the request to `completed` on both
    relay     stands before the destination and hides that it is one of ours: what strangers get
    bus       events through the outbox, and moves with the bus off, on and down
    pipeline  tar, with and without gzip, through a socket: no checksum, no commit, nothing verified
    figures   what one move cost, and the median of several
"""
