"""What privacy policies look for and what they say: patterns, the scanner of texts, the verdict on what it found.

Pure modules, without Django and without I/O: `patterns` says what is looked for and `checks` has the second look,
`about` says it in words, `scanner` finds it, `verdict` decides. The request path (`gateway.privacy`) takes it out and
puts it back; admin tries it out.

It is meant for what slips in by accident. It does not stop somebody who wants to hide a secret: a text in base64,
spelled backwards or spread over two messages is not found.
"""

from __future__ import annotations
