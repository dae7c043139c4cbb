"""Requests and answers under a privacy policy: what must not leave is taken out, and put back into the answer.

Pure modules, without Django and without I/O, over `providers.privacy`, which finds and decides: `texts` says where in a
request something may stand, `redaction` takes it out and puts it back, `answers` guards what models say, and
`inspection` puts these together for one request.
"""

from __future__ import annotations
