"""A page of the console as people use it who cannot see it, see it badly, or look at it on a phone.

`look` asks axe-core (https://github.com/dequelabs/axe-core) about the page in both colour schemes and measures it
at the width of a phone. Axe runs through the browser's debugger, so the page's content security policy stays as it is.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

DESK: Any = {"width": 1280, "height": 860}
PHONE: Any = {"width": 390, "height": 844}
GRAVE = ("serious", "critical")

# Where `make test` puts the packages of package.json, and where `npm install` beside it does.
_PLACES = (Path(sys.prefix) / "node", Path(__file__).resolve().parent / "node")

_EVERYTHING = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]},
    # The label of Django's search field is a picture with a text, which this rule does not count.
    "rules": {"label-title-only": {"enabled": False}},
}
_CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
_SCROLLING = {"runOnly": {"type": "rule", "values": ["scrollable-region-focusable"]}}

_RUN = r"""async options => {
    for (const each of document.getAnimations()) each.finish();
    const found = await axe.run({...options, resultTypes: ['violations'], preload: false});
    return found.violations.map(one => [one.impact, one.id, one.nodes.slice(0, 4).map(
        node => node.target.join(' ') + ' ' + node.html.replace(/\s+/g, ' ').slice(0, 160) + ' '
            + [...node.any, ...node.all].map(check => check.message).join('; ').slice(0, 200))]);
}"""
# The head and the menu are the same on every page, and half of its elements. Their places stay.
_WITHOUT_MENU = "document.querySelectorAll('#header, #nav-sidebar').forEach(each => each.replaceChildren())"
_WIDER = r"""() => {
    const page = document.scrollingElement;
    if (page.scrollWidth <= page.clientWidth) return null;
    const wide = [...document.querySelectorAll('body *')].filter(
        each => each.getBoundingClientRect().right > page.clientWidth + 1);
    return `${page.scrollWidth - page.clientWidth} px wider than the phone: `
        + wide.slice(-3).map(each => each.outerHTML.replace(/\s+/g, ' ').slice(0, 160)).join(' … ');
}"""
_SCROLLS = r"""() => [...document.querySelectorAll('main *')].some(
    each => each.scrollWidth > each.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(each).overflowX))"""

# Everything of the page's own part but its words, addresses and values: what axe can find depends on nothing else where
# no page may carry colours of its own.
_BUILD = r"""() => [...document.querySelectorAll('#content, #content *')].map(
    each => each.tagName + [...each.attributes]
    .filter(one => !['href', 'value', 'title', 'datetime', 'action'].includes(one.name))
    .map(one => one.name + '=' + one.value.replace(/\d+/g, '0'))).join()"""


@functools.cache
def axe() -> str:
    """The program's text. Fails the test where it is not installed."""
    for place in _PLACES:
        program = place / "node_modules" / "axe-core" / "axe.min.js"
        if program.is_file():
            return program.read_text()
    pytest.fail("axe-core is not installed: run `make test`, or `npm install` in tests/e2e/node.")


def look(page: Page, *, menu: bool = False, builds: set[str] | None = None) -> list[str]:
    """What is wrong with the page that is open, in words: nothing, for a good one.

    The page is looked at with the width of a phone, then on a desk, light and dark; it is left on a light desk. A page
    that is built like one in `builds`, to which it is added, is only measured. Without `menu` its head and menu are
    emptied after they were measured: they are the same on every page.
    """
    found = []
    page.set_viewport_size(PHONE)
    if wider := page.evaluate(_WIDER):
        found.append(wider)
    build = page.evaluate(_BUILD)
    if builds is not None and build in builds and not menu:
        page.set_viewport_size(DESK)
        return found
    if builds is not None:
        builds.add(build)
    scrolls = page.evaluate(_SCROLLS)
    if not menu:
        page.evaluate(_WITHOUT_MENU)
    page.evaluate(axe())
    if scrolls:
        found += _ask(page, _SCROLLING, "phone")
    page.set_viewport_size(DESK)
    found += _ask(page, _EVERYTHING, "light")
    page.emulate_media(color_scheme="dark")
    found += _ask(page, _CONTRAST, "dark")
    page.emulate_media(color_scheme="light")
    return found


def _ask(page: Page, options: dict[str, Any], where: str) -> list[str]:
    found = page.evaluate(_RUN, options)
    return [f"{where}: {impact} {rule}: {node}" for impact, rule, nodes in found if impact in GRAVE for node in nodes]
