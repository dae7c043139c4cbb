"use strict";
// Guides through the provider form: the chosen kind's usual address, what it needs, and a name nobody has typed yet.
(function () {
  const kind = document.querySelector("select[data-hoosh-kinds]");
  const url = document.getElementById("id_base_url");
  const name = document.getElementById("id_name");
  if (!kind || !url || !name) {
    return;
  }
  const kinds = JSON.parse(kind.dataset.hooshKinds);
  const hint = document.createElement("div");
  const fresh = name.value === "";
  let suggested = "";
  hint.className = "help hoosh-hint";
  hint.setAttribute("role", "status");
  kind.closest(".form-row").append(hint);

  function show() {
    const chosen = kinds[kind.value];
    url.placeholder = (chosen && chosen.address) || "https://host.example";
    hint.textContent = chosen ? chosen.hint : "";
    if (fresh && name.value === suggested) {
      suggested = chosen ? kind.value : "";
      name.value = suggested;
    }
  }

  kind.addEventListener("change", show);
  show();
})();
