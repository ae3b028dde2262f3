// What every page does in the browser: times in the reader's zone, dialogs, live updates, copying.
// Knows: attributes of the markup (data-events, data-live, data-keep, data-copy, data-stay, data-leave). Must never know: what a page is about.
"use strict";
(() => {
  const page = document.documentElement.lang;
  const language = navigator.languages.find((each) => each.startsWith(page)) || page;

  // -- times ------------------------------------------------------------------------------------------------------------

  const form = (options) => new Intl.DateTimeFormat(language, options);
  const clock = form({ hour: "2-digit", minute: "2-digit" });
  const weekday = form({ weekday: "short", hour: "2-digit", minute: "2-digit" });
  const day = form({ month: "short", day: "numeric" });
  const year = form({ year: "numeric", month: "short", day: "numeric" });
  const whole = form({ dateStyle: "full", timeStyle: "long" });

  const spoken = (moment) => {
    const now = new Date();
    if (moment.toDateString() === now.toDateString()) return clock.format(moment);
    if (Math.abs(now - moment) < 6 * 864e5) return weekday.format(moment);
    return (moment.getFullYear() === now.getFullYear() ? day : year).format(moment);
  };
  const localise = (root) => {
    for (const element of root.querySelectorAll("time[datetime]")) {
      const moment = new Date(element.dateTime);
      const text = spoken(moment);
      if (element.textContent !== text) element.textContent = text;
      element.title = whole.format(moment);
    }
  };

  // -- dialogs ----------------------------------------------------------------------------------------------------------

  const dialog = document.getElementById("dialog");
  let opener = null;

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.target !== dialog || dialog.open) return;
    const { elt, requestConfig } = event.detail;
    const pressed = requestConfig.triggeringEvent && requestConfig.triggeringEvent.submitter;
    opener = elt.id || (pressed && pressed.id);
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target !== dialog) return;
    if (!dialog.open) dialog.showModal();
    const first = dialog.querySelector("[autofocus]") || dialog.querySelector("h2");
    if (first) first.focus();
  });
  dialog.addEventListener("click", (event) => {
    const cancel = event.target.closest(".dialog-cancel");
    const outside = event.target === dialog && !dialog.querySelector("[data-stay]");
    if (cancel || outside) {
      event.preventDefault();
      dialog.close();
    }
  });
  dialog.addEventListener("close", () => {
    const leave = dialog.querySelector("a[data-leave]"); // what the page is about is gone: there is nothing to go back to
    if (leave) location.assign(leave.href);
    dialog.replaceChildren();
    const back = opener && document.getElementById(opener);
    if (back) back.focus();
  });
  document.addEventListener("keydown", (event) => {
    const button = event.target.closest && event.target.closest("a[role=button]");
    if (button && event.key === " ") {
      event.preventDefault();
      button.click();
    }
    if (event.key === "Escape") for (const open of document.querySelectorAll(".who[open]")) open.open = false;
  });
  document.addEventListener("click", (event) => {
    for (const open of document.querySelectorAll(".who[open]")) if (!open.contains(event.target)) open.open = false;
  });

  // -- what was asked for and did not come --------------------------------------------------------------------------------

  const failed = document.getElementById("failed");
  const gone = () => { failed.hidden = false; };
  document.addEventListener("htmx:sendError", gone);
  document.addEventListener("htmx:timeout", gone);
  document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.xhr.status) failed.hidden = true; });
  document.addEventListener("htmx:beforeSwap", (event) => {
    // A refusal is shown in a dialog, where it belongs to a question; it never takes the place of what is live.
    if (event.detail.xhr.status >= 400 && event.detail.target !== dialog) {
      event.detail.shouldSwap = false;
      gone();
    }
  });

  // -- open parts stay open ----------------------------------------------------------------------------------------------

  const kept = new Map();
  document.addEventListener("toggle", (event) => {
    if (event.target.dataset && event.target.dataset.keep) kept.set(event.target.dataset.keep, event.target.open);
  }, true);
  const reopen = () => {
    for (const part of document.querySelectorAll("details[data-keep]"))
      if (kept.get(part.dataset.keep)) part.open = true;
  };

  document.addEventListener("htmx:afterSettle", () => { localise(document); reopen(); });
  document.addEventListener("htmx:oobAfterSwap", (event) => {
    localise(document);
    reopen();
    const figures = document.querySelector("#lines[data-figures]");
    if (figures && !document.getElementById("timeline")) location.reload(); // the first version: now there is something to draw
    document.dispatchEvent(new CustomEvent("espalier-figures"));
  });

  // -- copying ----------------------------------------------------------------------------------------------------------

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      const box = document.createElement("textarea");
      box.value = button.dataset.copy;
      button.after(box);
      box.select();
      document.execCommand("copy");
      box.remove();
    }
    const before = button.textContent;
    button.textContent = button.dataset.copied;
    setTimeout(() => { button.textContent = before; }, 1500);
  });

  // -- live -------------------------------------------------------------------------------------------------------------

  const main = document.getElementById("main");
  const stale = document.getElementById("stale");
  const since = stale.querySelector("[data-stale-since]");
  let stream = null, waiting = null, again = null, heard = new Date(), last = 0;

  const lost = () => {
    if (!stale.hidden) return;
    since.dateTime = heard.toISOString();
    localise(stale);
    stale.hidden = false;
  };
  const refresh = () => {
    clearTimeout(waiting);
    waiting = null;
    last = Date.now();
    if (main.dataset.live) htmx.ajax("GET", main.dataset.live, { target: "body", swap: "none" });
    htmx.trigger(document.body, "espalier-changed");
  };
  const changed = () => {
    heard = new Date();
    if (waiting) return;
    const pause = Number(main.dataset.pause || 400);
    waiting = setTimeout(refresh, Math.max(150, pause - (Date.now() - last)));
  };
  const close = () => {
    if (stream) stream.close();
    stream = null;
    clearTimeout(again);
  };
  const listen = (missed) => {
    close();
    stream = new EventSource(main.dataset.events);
    stream.onopen = () => {
      heard = new Date();
      if (missed || !stale.hidden) refresh();
      stale.hidden = true;
      missed = false;
    };
    stream.onerror = () => {
      lost();
      if (stream && stream.readyState === EventSource.CLOSED) again = setTimeout(() => listen(true), 5000);
    };
    for (const kind of main.dataset.kinds.split(" ")) stream.addEventListener(kind, changed);
  };
  if (main.dataset.events) {
    listen(false);
    document.addEventListener("visibilitychange", () => (document.hidden ? close() : listen(true)));
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => { if (event.persisted) listen(true); });
    // What this page itself changed is told by the stream, too; without one it is asked for here.
    document.body.addEventListener("espalier-changed", (event) => { if (event.detail && event.detail.elt && main.dataset.live) changed(); });
  }

  localise(document);
  setInterval(() => localise(document), 60000);
})();
