"use strict";
// Shows requests while they are settled, newest first: from a stream, or by asking again and again where none holds.
(function () {
  const SHOWN = 200;
  const table = document.getElementById("tail");
  const body = table.tBodies[0];
  const state = document.getElementById("tail-state");
  const count = document.getElementById("tail-waiting");  // no live region: it changes with every request
  const none = document.getElementById("tail-none");
  const pause = document.getElementById("tail-pause");
  let waiting = [];
  let missed = 0;
  let paused = false;
  let source = null;
  let failures = 0;
  let last = Number(table.dataset.last);  // the newest row there was, or was told of
  let seen = new Set();  // ids: a stream and an answer may tell of the same row

  // Said again, the same words would be read out again.
  function say(text) {
    if (state.textContent !== text) {
      state.textContent = text;
    }
  }

  function cell(row, text, kind) {
    const made = row.insertCell();
    made.textContent = text;
    if (kind) {
      made.className = kind;
    }
    return made;
  }

  function add(each) {
    const row = body.insertRow(0);
    const link = document.createElement("a");
    link.href = each.url;
    link.textContent = each.at;
    cell(row, "", "nowrap").append(link);
    const status = cell(row, "", "nowrap");
    const badge = document.createElement("span");
    const tone = each.status >= 500 || each.status === 0 ? "bad" : each.status >= 400 || each.error ? "warn" : "good";
    badge.className = "hoosh-badge " + tone;
    badge.textContent = each.status || "?";
    status.append(badge, " " + each.error);
    cell(row, each.model, "hoosh-mono");
    cell(row, each.provider);
    cell(row, each.agent);
    cell(row, each.key);
    cell(row, each.tokens, "hoosh-number");
    cell(row, each.cost, "hoosh-number");
    cell(row, each.ms, "hoosh-number");
  }

  function show() {
    if (paused) {
      say("Paused.");
      pause.textContent = "Go on";
      count.textContent = waiting.length + missed + " waiting";
      return;
    }
    count.textContent = "";
    waiting.forEach(add);
    waiting = [];
    while (body.rows.length > SHOWN) {
      body.deleteRow(-1);
    }
    none.hidden = body.rows.length > 0;
    say((source ? "Live" : "Asking every 2 s") + (missed ? "; " + missed + " passed over, too many to show." : "."));
  }

  function take(told) {
    const fresh = told.rows.filter(function (each) { return !seen.has(each.id); });
    seen = new Set([...seen].slice(-4 * SHOWN));
    fresh.forEach(function (each) {
      seen.add(each.id);
      last = Math.max(last, each.id);
    });
    waiting = waiting.concat(fresh);
    missed += told.skipped + Math.max(0, waiting.length - SHOWN);
    waiting = waiting.slice(-SHOWN);
    show();
  }

  function askNewer() {
    return fetch(table.dataset.rows + "&after=" + last);
  }

  async function poll() {
    try {
      const reply = await askNewer();
      if (reply.ok) {
        const told = await reply.json();
        take(told);
        last = told.last;
      } else {
        say("No answer (" + reply.status + "). Sign in again?");
      }
    } catch {
      say("No answer; asking again.");
    }
    window.setTimeout(poll, 2000);
  }

  // What was settled before a stream held, or while none did.
  async function catchUp() {
    try {
      const reply = await askNewer();
      if (reply.ok) {
        take({ rows: (await reply.json()).rows, skipped: 0 });
      }
    } catch {
      // The gateway is away: the stream ends too, and comes back.
    }
  }

  function listen() {
    source = new EventSource(table.dataset.stream);
    source.addEventListener("open", function () {
      failures = 0;
      show();
      catchUp();
    });
    source.addEventListener("message", function (event) { take(JSON.parse(event.data)); });
    source.addEventListener("error", function () {
      failures += 1;
      // A stream that ends is opened again by the browser; one that is refused, or never holds, is not worth it.
      if (source.readyState === EventSource.CLOSED || failures > 3) {
        source.close();
        source = null;
        poll();
      } else if (!paused) {
        say("Connecting…");
      }
    });
  }

  pause.hidden = false;
  pause.addEventListener("click", function () {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    show();
  });
  window.addEventListener("pagehide", function () {
    if (source) {
      source.close();
    }
  });
  say("Connecting…");
  if (window.EventSource) {
    listen();
  } else {
    poll();
  }
})();
