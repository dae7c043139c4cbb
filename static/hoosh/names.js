"use strict";
// Gives names to what Django's scripts build without: fields that search while one types, and the icons of double lists.
(function () {
  function name(root) {
    root.querySelectorAll("select.admin-autocomplete").forEach(function (field) {
      const label = field.labels[0];
      const box = field.nextElementSibling && field.nextElementSibling.querySelector(".select2-selection");
      if (!label || !box) {
        return;
      }
      label.id = label.id || field.id + "_label";
      const shown = box.querySelector(".select2-selection__rendered");
      if (shown && shown.id) {
        shown.setAttribute("aria-labelledby", label.id);
        box.setAttribute("aria-labelledby", label.id + " " + shown.id);
      } else {
        box.setAttribute("aria-labelledby", label.id);
      }
    });
    root.querySelectorAll("span.help-tooltip[aria-label]").forEach(function (icon) {
      icon.setAttribute("role", "img");
    });
  }

  // Behind Django's own: its fields are built when jQuery is ready, its lists when the page is loaded.
  if (window.django && window.django.jQuery) {
    window.django.jQuery(function () { name(document); });
  }
  window.addEventListener("load", function () { name(document); });
  document.addEventListener("formset:added", function (event) { name(event.target); });
})();
