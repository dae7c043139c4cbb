"""Finding personal data and secrets in requests and answers, and what is done about them.

Pure modules, without Django and without I/O: `patterns` says what is looked for, `scanner` finds it, `texts` where in a
request it may stand, `redaction` takes it out and puts it back, `answers` guards what models say, `verdict` decides,
and `inspection` puts these together for one request.

It is meant for what slips in by accident. It does not stop somebody who wants to hide a secret: a text in base64,
spelled backwards or spread over two messages is not found.
"""

from __future__ import annotations
