"use strict";
// Shows the chosen kind's usual address as the placeholder of the base URL.
(function () {
  const kind = document.querySelector("select[data-hoosh-addresses]");
  const url = document.getElementById("id_base_url");
  if (!kind || !url) {
    return;
  }
  const addresses = JSON.parse(kind.dataset.hooshAddresses);
  function show() {
    url.placeholder = addresses[kind.value] || "https://host.example";
  }
  kind.addEventListener("change", show);
  show();
})();
