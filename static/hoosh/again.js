"use strict";
// Looks again every second at a part of the page that says it is not settled (data-hoosh-again), and shows it in place.
(function () {
  const ID = "hoosh-again";

  async function look() {
    const part = document.getElementById(ID);
    if (!part || !part.hasAttribute("data-hoosh-again")) {
      return;
    }
    try {
      const reply = await fetch(window.location.href, { headers: { accept: "text/html" } });
      const found = new DOMParser().parseFromString(await reply.text(), "text/html").getElementById(ID);
      // Put in place only when it says something else, so that it is read out once.
      if (reply.ok && found && found.textContent !== part.textContent) {
        part.replaceChildren(...found.childNodes);
        part.toggleAttribute("data-hoosh-again", found.hasAttribute("data-hoosh-again"));
      }
    } catch {
      // The gateway is away for the moment: asked again below.
    }
    window.setTimeout(look, 1000);
  }

  window.setTimeout(look, 1000);
})();
