"use strict";
// Copies the text of the element named by data-hoosh-copy, and keeps a reload from sending the form again.
(function () {
  function selectText(element) {
    const range = document.createRange();
    range.selectNodeContents(element);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  document.querySelectorAll("[data-hoosh-copy]").forEach(function (button) {
    const source = document.getElementById(button.dataset.hooshCopy);
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async function () {
      selectText(source);
      let copied = false;
      try {
        await navigator.clipboard.writeText(source.textContent.trim());
        copied = true;
      } catch {
        // Without https the clipboard is closed to scripts; the older command still works on the selection.
        copied = document.execCommand("copy");
      }
      button.textContent = copied ? "Copied" : "Press Ctrl+C";
      window.setTimeout(function () { button.textContent = label; }, 2000);
    });
  });

  const page = document.querySelector("[data-hoosh-address]");
  if (page) {
    window.history.replaceState(null, "", page.dataset.hooshAddress);
  }
})();
