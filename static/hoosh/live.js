"use strict";
// Keeps the live part of the first page fresh: by server-sent events, and by asking again where these do not come.
(function () {
  const part = document.getElementById("hoosh-live");
  if (!part) {
    return;
  }
  const state = document.getElementById("hoosh-live-state");
  let source = null;
  let failures = 0;
  let timer = null;

  // Said again, the same words would be read out again.
  function say(text) {
    if (state.textContent !== text) {
      state.textContent = text;
    }
  }

  function show(html) {
    // Markup of our own server, made by the same template as the page: it holds no scripts, and none would run.
    if (!part.contains(document.activeElement)) {
      part.innerHTML = html;
    }
    say("Live: these figures are kept fresh.");
  }

  async function poll() {
    try {
      const reply = await fetch(part.dataset.part, { headers: { accept: "text/html" } });
      if (reply.redirected) {
        say("Not fresh: you are signed out. Load the page again.");
        return;
      }
      if (!reply.ok) {
        throw new Error(String(reply.status));
      }
      show(await reply.text());
    } catch {
      say("Not fresh: the gateway does not answer.");
    }
    timer = window.setTimeout(poll, 10000);
  }

  function listen() {
    source = new EventSource(part.dataset.stream);
    source.onmessage = function (event) {
      failures = 0;
      show(event.data);
    };
    source.onerror = function () {
      failures += 1;
      if (failures >= 3 || source.readyState === EventSource.CLOSED) {
        source.close();
        source = null;
        poll();
      } else {
        say("Not fresh: connecting…");
      }
    };
  }

  function stop() {
    if (source) {
      source.close();
      source = null;
    }
    window.clearTimeout(timer);
  }

  document.addEventListener("visibilitychange", function () {
    stop();
    if (!document.hidden) {
      failures = 0;
      listen();
    }
  });
  window.addEventListener("pagehide", stop);
  listen();
})();
