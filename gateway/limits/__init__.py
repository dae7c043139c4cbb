"""Rate limits that are exact over all worker processes of one host.

gcra       the arithmetic of one limit. Pure.
slot_file  the file in mapped memory: layout, creation, locks, who owns which cells.
slots      the table in it: names to rows, turns, counts in flight, burial of dead owners.
limiter    what the request path calls: subjects with limits, tickets, refusals.
status     what a page shows of all that.
"""
