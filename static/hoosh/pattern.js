"use strict";
// Says below a route's pattern, while it is typed, which of the known models it means.
(function () {
  const url = document.currentScript.dataset.url;
  const input = document.getElementById("id_pattern");
  if (!input) {
    return;
  }
  const shown = document.createElement("div");
  shown.className = "hoosh-matches";
  shown.setAttribute("role", "status");
  input.closest(".form-row").append(shown);
  let timer = 0;
  let asking = null;

  function element(name, text, kind) {
    const made = document.createElement(name);
    made.textContent = text;
    made.className = kind || "";
    return made;
  }

  function show(told) {
    shown.replaceChildren();
    if (told.problem) {
      shown.append(element("span", told.problem, "hoosh-badge bad"));
      return;
    }
    const many = told.total === 1 ? "1 known model matches" : told.total + " of " + told.known + " known models match";
    shown.append(element("span", told.total ? many : "No known model matches", "hoosh-badge " + (told.total ? "good" : "warn")));
    told.matching.slice(0, 12).forEach(function (each) {
      const name = element("code", each.name, "hoosh-model");
      name.title = each.providers.length ? "Listed by " + each.providers.join(", ") : "Named by a route";
      shown.append(name);
    });
    if (told.total > 12) {
      shown.append(element("span", "and " + (told.total - 12) + " more", "quiet"));
    }
  }

  async function ask() {
    if (asking) {
      asking.abort();
    }
    if (!input.value.trim()) {
      shown.replaceChildren();
      return;
    }
    const mine = new AbortController();
    asking = mine;
    try {
      const reply = await fetch(url + "?" + new URLSearchParams({ pattern: input.value }), { signal: mine.signal });
      if (!reply.ok) {
        throw new Error("status " + reply.status);
      }
      const told = await reply.json();
      if (asking === mine) {
        show(told);
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        shown.replaceChildren(element("span", "The known models could not be asked for.", "quiet"));
      }
    }
  }

  input.addEventListener("input", function () {
    window.clearTimeout(timer);
    timer = window.setTimeout(ask, 200);
  });
  ask();
})();
