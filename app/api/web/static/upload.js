// Files that are dropped or chosen are sent by tus 1.0.0: in parts, with progress, and on from where a broken connection
// left them, also after the page was loaded anew. Knows: uploads. Must never know: what a file holds.
"use strict";
(() => {
  const place = document.getElementById("upload");
  if (!place) return;
  const said = place.dataset;
  const reasons = JSON.parse(said.reasons);
  const list = place.querySelector("ul");
  const chosen = place.querySelector("input");
  const partBytes = Number(said.part);
  const LONGEST_WAIT = 30000;

  const say = (text, values) => text.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
  const wait = (time) => new Promise((done) => { setTimeout(done, time); });
  const encoded = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

  // What was begun is kept by the browser, so that the same file goes on where it stopped.
  const memory = {
    key: (file) => ["espalier", said.upload, file.name, file.size, file.lastModified].join(":"),
    get: (file) => { try { return localStorage.getItem(memory.key(file)); } catch { return null; } },
    set: (file, url) => { try { localStorage.setItem(memory.key(file), url); } catch { /* it is sent anew, then */ } },
    forget: (file) => { try { localStorage.removeItem(memory.key(file)); } catch { /* nothing was kept */ } },
  };

  const send = (method, url, headers, body, progress) => new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, url);
    request.setRequestHeader("Tus-Resumable", "1.0.0");
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    if (progress) request.upload.onprogress = progress;
    request.onload = () => resolve(request);
    request.onerror = request.onabort = request.ontimeout = () => reject(new Error("lost"));
    request.send(body);
  });

  const rowOf = (file) => {
    const row = document.createElement("li");
    const name = document.createElement("b");
    const bar = document.createElement("progress");
    const text = document.createElement("span");
    name.textContent = file.name;
    bar.max = Math.max(1, file.size);
    bar.value = 0;
    bar.setAttribute("aria-label", file.name);
    row.append(name, bar, text);
    list.prepend(row);
    return {
      at: (bytes) => {
        bar.value = bytes;
        const share = Math.floor((100 * bytes) / bar.max);
        text.textContent = bytes < file.size ? say(said.sending, { share }) : said.reading;
      },
      say: (words, tone) => { text.textContent = words; text.className = tone || ""; },
      end: (words, tone, more) => {
        bar.remove();
        text.textContent = words;
        text.className = tone;
        if (!more) return;
        const detail = document.createElement("small");
        detail.lang = "en";
        detail.textContent = more;
        row.append(detail);
      },
    };
  };

  const problemOf = (request) => {
    try { return JSON.parse(request.responseText); } catch { return {}; }
  };
  const passing = (request, problem) =>
    request.status >= 500 || [408, 423, 429].includes(request.status) || /offset-mismatch$/.test(problem.type || "");

  const begin = (file) => {
    const about = [`filename ${encoded(file.name)}`];
    if (file.type) about.push(`filetype ${encoded(file.type)}`);
    return send("POST", said.upload, { "Upload-Length": file.size, "Upload-Metadata": about.join(",") });
  };
  const part = (file, url, offset, row) => send(
    "PATCH", url, { "Upload-Offset": offset, "Content-Type": "application/offset+octet-stream" },
    file.slice(offset, offset + partBytes), (event) => row.at(Math.min(file.size, offset + event.loaded)),
  );
  // An answer to HEAD has no body: why an upload was refused is asked for.
  const whyRefused = async (url) => (problemOf(await send("GET", url, {}))).problem || {};

  const upload = async (file) => {
    const row = rowOf(file);
    let url = memory.get(file), offset = null, failures = 0;
    if (url) row.say(said.goesOn);
    for (;;) {
      try {
        const asked = url && (offset === null || offset >= file.size);
        const answer = await (!url ? begin(file) : asked ? send("HEAD", url, {}) : part(file, url, offset, row));
        const number = answer.getResponseHeader("Espalier-Megabatch");
        if (answer.status < 300 && number) {
          memory.forget(file);
          row.end(say(said.accepted, { number }), "good");
          htmx.trigger(document.body, "espalier-changed");
          return;
        }
        if (answer.status < 300) {
          if (!url) memory.set(file, url = answer.getResponseHeader("Location"));
          offset = Number(answer.getResponseHeader("Upload-Offset") || 0);
          failures = 0;
          row.at(offset);
          if (offset >= file.size) await wait(500);
          continue;
        }
        if (asked && [404, 410].includes(answer.status)) {
          memory.forget(file);
          url = offset = null;
          continue;
        }
        const problem = problemOf(answer);
        if (!passing(answer, problem)) {
          const why = asked ? await whyRefused(url) : problem;
          memory.forget(file);
          const word = why.reason || (why.type || "").split(":").pop();
          const known = reasons[word];
          row.end(say(said.refused, { why: known || why.detail || answer.status }), "bad", known && why.detail);
          return;
        }
      } catch { /* the connection was lost: the same is tried again below */ }
      offset = null;
      failures += 1;
      row.say(said.again, "warn");
      await wait(Math.min(LONGEST_WAIT, 500 * 2 ** Math.min(failures, 8)));
    }
  };

  // One after the other: megabatches are numbered in the order in which they were given.
  let last = Promise.resolve();
  const take = (files) => { for (const file of [...files]) last = last.then(() => upload(file)); };

  chosen.addEventListener("change", () => { take(chosen.files); chosen.value = ""; });
  const dragged = (event) => [...((event.dataTransfer && event.dataTransfer.types) || [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    place.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) place.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    if (!dragged(event)) return;
    event.preventDefault();
    place.classList.remove("over");
    take(event.dataTransfer.files);
  });
})();
