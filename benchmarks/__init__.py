"""Benchmarks: shoal beside every installed peer, in one run, on one machine.

Role: measure, never decide. Owner: nobody at run time; shoal does not import this package.

    python -m benchmarks.pool            the pool's figures; a few minutes
    python -m benchmarks.data            large arrays there and back, and the pictures; some minutes more
    python -m benchmarks.scale           up to 64 workers, and a thousand on paper
    python -m benchmarks.pool --quick    the same rows with fewer tasks and rounds
    python -m benchmarks.auto            maps against the plain loop, from 0.1 µs to 1 s a task
    python -m benchmarks.sync            locks, queues and channels between up to eight processes
    python -m benchmarks.report          render the page again from the stored results

    question files    pool.py        which cases there are, what their rows mean, what is aimed at
                      data.py        the same for arrays
                      scale.py       the same for many workers
                      auto.py        the same for maps that choose where to run
                      sync.py        the same for locks, queues and channels
    contenders        adapter.py     what a case may ask of any of them
                      contenders.py  one small adapter for each peer
                      clusters.py    those for Ray and Dask
                      kits.py        locks, queues and pipes of those that have some
    limits            physical.py    what the machine itself can do, measured in the same run
    machinery         harness.py     a fresh interpreter per case, interleaved rounds, limits, cleaning up
                      child.py       the main module of that fresh interpreter
                      parties.py     processes of one case that begin at the same instant
                      procs.py       what /proc says: who belongs to a case, how much memory it holds
                      machine.py     what was measured on
                      weigher.py     the most memory a case held, watched from outside
                      workloads.py   the functions the tasks run
                      arrays.py      the same for arrays
    paper             simulation.py  the dispatcher with simulated workers in simulated time
    arithmetic        model.py       rows, targets, medians, verdicts (pure)
    words             report.py      table on the screen, page in docs/
                      picture.py     curves as SVG (pure)
                      bars.py        a whole table as SVG (pure)

A further question is one more file like pool.py: a `Suite` of `Case`s and the line that runs it.
"""
