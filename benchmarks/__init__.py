"""The benchmark: tnat64d beside every other way of reaching IPv4 servers from an IPv6-only host.

    make bench              everything; make bench QUICK=1 in under three minutes
    python -m benchmarks.run --help

    lab        hosts and servers                     measures  what is done to each peer, and the figures it gives
    load.c     the load, apart from HTTP             metrics   names and units of the figures, and the targets
    peer       what a peer is, its life              samples   medians, ratios, JSON
    peers      what is compared, how it is started   report    Markdown        plots   pictures
    run        rounds, progress, files               profile   system calls and hot functions of one peer
    processes  CPU time, memory, wake-ups of a program and its children

It is no test: nothing here asserts a speed. The labs are those of the tests (`tests.lab`). Needs root.
"""
