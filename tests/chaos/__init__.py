"""Processes killed at random under load, and books that must come out right afterwards.

`python -m tests.chaos.run` is the long run (`make chaos`), the `test_*` files are the short one. Who writes what:

    population          the pools, the keys and the made-up requests
    schedule            when what is killed, from a seed
    databases           a PostgreSQL that can be stopped at once, the two files of SQLite
    control_process     the real ledger writer and the line to the workers, with windows of a second
    worker_process      the real desk, journal and link, with made-up clients and a made-up upstream
    truth               what clients and upstream saw, written by themselves
    sampler             looks at the balances twenty times a second
    books               lays everything side by side and prints the line
    ledger_run          all of these without HTTP
    http_run            the gateway's own processes instead of the two above
"""
