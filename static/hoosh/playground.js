"use strict";
// Asks the inference API as any client would, and shows what comes as text: nothing of an answer is ever read as HTML.
(function () {
  const form = document.getElementById("playground");
  const state = document.getElementById("state");
  const askButton = document.getElementById("ask");
  const stopButton = document.getElementById("stop");
  const base = window.location.origin + "/v1";
  let key = null;
  let running = null;

  async function keyFor(pool) {
    const now = Date.now() / 1000;
    if (key && key.pool === pool && key.expires_at - now > 60) {
      return key.key;
    }
    const body = new URLSearchParams({ pool: pool });
    const reply = await fetch(form.dataset.keyUrl, {
      method: "POST",
      headers: { "x-csrftoken": form.elements.csrfmiddlewaretoken.value },
      body: body,
    });
    const told = reply.headers.get("content-type").includes("json") ? await reply.json() : { error: "refused" };
    if (!reply.ok) {
      throw new Error("No key was made: " + told.error);
    }
    key = { ...told, pool: pool };
    return key.key;
  }

  function question(model) {
    const messages = [];
    if (form.elements.system.value.trim()) {
      messages.push({ role: "system", content: form.elements.system.value });
    }
    messages.push({ role: "user", content: form.elements.question.value });
    const asked = { model: model, messages: messages, stream: true, stream_options: { include_usage: true } };
    if (form.elements.max_tokens.value) {
      asked.max_tokens = Number(form.elements.max_tokens.value);
    }
    if (form.elements.temperature.value) {
      asked.temperature = Number(form.elements.temperature.value);
    }
    return asked;
  }

  // --- one side ---------------------------------------------------------------------------------------------------

  function facts(side, rows) {
    const list = side.querySelector(".hoosh-told");
    list.replaceChildren();
    rows.forEach(function (row) {
      const name = document.createElement("dt");
      const value = document.createElement("dd");
      name.textContent = row[0];
      if (row[2]) {
        const link = document.createElement("a");
        link.href = row[2];
        link.textContent = row[1];
        value.append(link);
      } else {
        value.textContent = row[1];
      }
      list.append(name, value);
    });
    list.hidden = rows.length === 0;
  }

  function snippets(side, asked, route) {
    const plain = { ...asked };
    delete plain.stream_options;
    const json = JSON.stringify(plain, null, 2);
    const quoted = json.replaceAll("'", "'\\''");
    const python = json.replace("\n  \"stream\": true", "\n  \"stream\": True");
    const headers = route ? { "x-hoosh-route": route } : {};
    const texts = {
      c: "curl -N " + base + "/chat/completions \\\n  -H \"Authorization: Bearer $HOOSH_KEY\" \\\n" +
        "  -H 'Content-Type: application/json' \\\n" +
        (route ? "  -H 'x-hoosh-route: " + route.replaceAll("'", "'\\''") + "' \\\n" : "") + "  -d '" + quoted + "'",
      p: "import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url=\"" + base + "\", api_key=os.environ[\"HOOSH_KEY\"])\n" +
        "stream = client.chat.completions.create(**" + python + (route ? ", extra_headers=" + JSON.stringify(headers) : "") +
        ")\nfor chunk in stream:\n    for choice in chunk.choices:\n        print(choice.delta.content or \"\", end=\"\", flush=True)",
      n: "import OpenAI from \"openai\";\n\nconst client = new OpenAI({ baseURL: \"" + base + "\", apiKey: process.env.HOOSH_KEY });\n" +
        "const stream = await client.chat.completions.create(" + json + (route ? ", { headers: " + JSON.stringify(headers) + " }" : "") +
        ");\nfor await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? \"\");",
    };
    Object.keys(texts).forEach(function (name) {
      document.getElementById("snippet-" + side.dataset.side + "-" + name).textContent = texts[name];
    });
    side.querySelector(".hoosh-snippets").hidden = false;
  }

  async function fetchStarted(secret, asked, route, signal) {
    const headers = { authorization: "Bearer " + secret, "content-type": "application/json", "x-hoosh-explain": "1" };
    if (route) {
      headers["x-hoosh-route"] = route;
    }
    // A key that was made this moment is known to every worker within a second.
    for (let tries = 0; ; tries += 1) {
      const reply = await fetch(base + "/chat/completions", {
        method: "POST", headers: headers, body: JSON.stringify(asked), signal: signal, credentials: "omit",
      });
      if (reply.status !== 401) {
        return reply;
      }
      if (tries === 8) {
        key = null; // another page of this person's has made a new one: so does the next question
        return reply;
      }
      await new Promise(function (done) { window.setTimeout(done, 250); });
    }
  }

  async function* events(reply) {
    const reader = reply.body.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const piece = await reader.read();
      rest += decoder.decode(piece.value || new Uint8Array(), { stream: !piece.done });
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const line = block.split("\n").find(function (each) { return each.startsWith("data:"); });
        if (line) {
          yield line.slice(5).trim();
        }
      }
      if (piece.done) {
        return;
      }
    }
  }

  function decided(reply) {
    const rows = [["Route", reply.headers.get("x-hoosh-route") || "none"]];
    try {
      const told = JSON.parse(reply.headers.get("x-hoosh-decision"));
      const others = told.candidates.map(function (each) { return each.route + " (" + each.reason + ")"; });
      rows.push(["Decided by", told.strategy + (told.policy ? ", policy " + told.policy : "")]);
      rows.push(["Candidates", others.join("; ")]);
      if (told.rejected.length) {
        rows.push(["Left out", told.rejected.map(function (each) { return each.route + ": " + each.reason; }).join("; ")]);
      }
    } catch {
      // A refusal has no decision.
    }
    if (reply.headers.get("x-hoosh-cache")) {
      rows.push(["Kept answers", reply.headers.get("x-hoosh-cache")]);
    }
    return rows;
  }

  async function booked(secret, id, signal) {
    for (let tries = 0; tries < 12; tries += 1) {
      const reply = await fetch(base + "/requests/" + encodeURIComponent(id), {
        headers: { authorization: "Bearer " + secret }, signal: signal, credentials: "omit",
      });
      if (reply.ok) {
        return await reply.json();
      }
      await new Promise(function (done) { window.setTimeout(done, 250); });
    }
    return null;
  }

  async function ask(side, secret, signal) {
    const answer = side.querySelector(".hoosh-answer");
    const name = side.dataset.side;
    const model = form.elements["model-" + name].value.trim();
    const route = form.elements["route-" + name].value;
    answer.textContent = "";
    answer.classList.remove("failed");
    facts(side, []);
    if (!model) {
      side.querySelector(".hoosh-snippets").hidden = true;
      return;
    }
    const asked = question(model);
    snippets(side, asked, route);
    answer.setAttribute("aria-busy", "true");
    const began = performance.now();
    let first = null;
    let usage = null;
    let rows = [];
    try {
      const reply = await fetchStarted(secret, asked, route, signal);
      rows = decided(reply);
      const id = reply.headers.get("x-hoosh-request");
      if (!reply.ok) {
        const told = await reply.json();
        throw new Error(reply.status + " " + told.error.message);
      }
      for await (const data of events(reply)) {
        if (data === "[DONE]") {
          continue;
        }
        const event = JSON.parse(data);
        if (event.error) {
          throw new Error(event.error.message);
        }
        usage = event.usage || usage;
        const delta = event.choices && event.choices[0] && event.choices[0].delta;
        const text = delta ? (delta.reasoning_content || "") + (delta.content || "") : "";
        if (text) {
          first = first === null ? performance.now() - began : first;
          answer.append(text);
        }
      }
      const total = performance.now() - began;
      rows.push(["Time", (first === null ? "nothing was said" : "first words after " + Math.round(first) + " ms") + ", all after " + Math.round(total) + " ms"]);
      if (usage) {
        rows.push(["Tokens", usage.prompt_tokens + " in, " + usage.completion_tokens + " out"]);
      }
      facts(side, rows);
      const report = await booked(secret, id, signal);
      if (report) {
        rows.push(["Cost", report.cost_usd ? "$" + report.cost_usd.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "") : "unknown"]);
      }
      rows.push(["Request", id, form.dataset.usageUrl ? form.dataset.usageUrl + "?q=" + id : ""]);
    } catch (error) {
      answer.classList.add("failed");
      answer.append((answer.textContent ? "\n\n" : "") + (error.name === "AbortError" ? "Stopped." : error.message));
    }
    facts(side, rows);
    answer.setAttribute("aria-busy", "false");
  }

  form.addEventListener("submit", async function (event) {
    event.preventDefault();
    if (running) {
      return;
    }
    running = new AbortController();
    askButton.disabled = true;
    stopButton.disabled = false;
    state.textContent = "Asking…";
    try {
      const secret = await keyFor(form.elements.pool.value);
      const signal = running.signal;
      await Promise.all([...form.querySelectorAll(".hoosh-side")].map(function (side) { return ask(side, secret, signal); }));
      state.textContent = "";
    } catch (error) {
      state.textContent = error.message;
    }
    running = null;
    askButton.disabled = false;
    stopButton.disabled = true;
  });

  stopButton.addEventListener("click", function () {
    if (running) {
      running.abort();
    }
  });
})();
