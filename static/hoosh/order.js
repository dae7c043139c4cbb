"use strict";
// Rows of a list are dragged to their place by a handle; the arrows beside it do the same without a script.
(function () {
  const form = document.getElementById("hoosh-move");
  const list = document.querySelector("#result_list tbody");
  if (!form || !list) {
    return;
  }
  const edited = document.getElementById("changelist-form");
  let drag = null;

  function isEdited() {
    return [...edited.querySelectorAll("#result_list input")].some(function (each) {
      if (each.classList.contains("action-select")) {
        return false;
      }
      return each.type === "checkbox" ? each.checked !== each.defaultChecked : each.value !== each.defaultValue;
    });
  }

  form.addEventListener("submit", function (event) {
    if (isEdited() && !window.confirm("What you changed in the list is not saved and would be lost. Move anyway?")) {
      event.preventDefault();
      putBack();
    }
  });

  function rows() {
    return [...list.rows].filter(function (row) { return row.querySelector(".hoosh-move"); });
  }

  function idOf(row) {
    return row.querySelector(".hoosh-move").dataset.route;
  }

  function putBack() {
    if (drag) {
      list.insertBefore(drag.row, drag.next);
      end();
    }
  }

  function end() {
    drag.row.classList.remove("hoosh-dragged");
    document.body.classList.remove("hoosh-dragging");
    drag = null;
  }

  function follow(event) {
    if (!drag || event.pointerId !== drag.pointer) {
      return;
    }
    const edge = 60;
    if (event.clientY < edge) {
      drag.scroller.scrollBy(0, -12);
    } else if (event.clientY > window.innerHeight - edge) {
      drag.scroller.scrollBy(0, 12);
    }
    const over = rows().find(function (row) {
      const box = row.getBoundingClientRect();
      return row !== drag.row && event.clientY >= box.top && event.clientY < box.bottom;
    });
    if (over) {
      const box = over.getBoundingClientRect();
      list.insertBefore(drag.row, event.clientY < box.top + box.height / 2 ? over : over.nextSibling);
    }
  }

  function drop(event) {
    if (!drag || event.pointerId !== drag.pointer) {
      return;
    }
    const now = rows();
    const place = now.indexOf(drag.row);
    if (place === drag.place) {
      putBack();
      return;
    }
    const value = document.createElement("input");
    const side = place + 1 < now.length ? ":before:" + idOf(now[place + 1]) : ":after:" + idOf(now[place - 1]);
    value.type = "hidden";
    value.name = "move";
    value.value = idOf(drag.row) + side;
    form.append(value);
    form.requestSubmit();
    if (drag) {
      drag.row.classList.remove("hoosh-dragged");
    } else {
      value.remove();
    }
  }

  list.querySelectorAll(".hoosh-handle").forEach(function (handle) {
    handle.hidden = false;
    handle.addEventListener("pointerdown", function (event) {
      if (event.button !== 0) {
        return;
      }
      event.preventDefault();
      const row = handle.closest("tr");
      const main = document.getElementById("main");
      const scroller = main && main.scrollHeight > main.clientHeight ? main : window;
      drag = { row: row, next: row.nextSibling, place: rows().indexOf(row), pointer: event.pointerId, scroller: scroller };
      row.classList.add("hoosh-dragged");
      document.body.classList.add("hoosh-dragging");
    });
  });
  // On the document: a row that is moved in the page loses the pointer it captured.
  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerup", drop);
  document.addEventListener("pointercancel", putBack);
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape") {
      putBack();
    }
  });
})();
