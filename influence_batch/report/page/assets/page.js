// What the views of classes and groups (views.js) use of the list.
const page = (() => {
  const { h, number, digits, night, significant, address, named, cut, cutIn, whole, compareText, cellWriter } = writing;
  // Everything from the data goes into the page as text (textContent, value), never as markup.
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows;
  const { thumb, picture, card } = examplesOf(data.names);
  const total = (rows.id || []).length;
  const PAGE = 50;
  const MOST_OPTIONS = 300;
  const byId = (id) => document.getElementById(id);

  const at = (name, i) => (rows[name] ? rows[name][i] : null);

  // Verdicts, kept in the browser where it lets a file do so.
  const KEY = `influence-batch verdicts ${data.audit} ${data.started}`;
  const verdicts = new Map();
  let kept = true;
  const place = new Map((rows.id || []).map((id, i) => [id, i]));
  const reviewer = byId("reviewer");
  function load() {
    try {
      const saved = JSON.parse(localStorage.getItem(KEY) || "null");
      for (const [id, verdict] of (saved && saved.verdicts) || []) if (place.has(id)) verdicts.set(id, verdict);
      reviewer.value = (saved && saved.reviewer) || "";
    } catch {
      kept = false;
    }
  }
  function save() {
    try {
      localStorage.setItem(KEY, JSON.stringify({ reviewer: reviewer.value, verdicts: [...verdicts] }));
    } catch {
      kept = false;
    }
    tray();
  }
  function tray() {
    const n = verdicts.size;
    const counts = { mislabeled: 0, correct: 0, ambiguous: 0 };
    for (const verdict of verdicts.values()) counts[verdict.verdict] += 1;
    const said = Object.entries(counts).filter(([, c]) => c).map(([name, c]) => `${number(c)} ${name}`).join(", ");
    const where = kept ? "kept in this browser until you download them" : "not kept by this browser: download before you leave";
    byId("tray-words").textContent = n ? `${number(n)} ${n === 1 ? "verdict" : "verdicts"}: ${said}; ${where}.` : "No verdicts yet: open a row and decide.";
    byId("download").disabled = n === 0;
  }
  window.addEventListener("beforeunload", (event) => {
    if (!kept && verdicts.size) event.preventDefault();
  });

  const cell = cellWriter(data.guard);
  function csv() {
    const lines = [["id", "verdict", "given_label", "corrected_label", "row_fingerprint", "reviewer", "time", "note", "run_id"]];
    const order = [...verdicts.keys()].sort((a, b) => place.get(a) - place.get(b));
    for (const id of order) {
      const verdict = verdicts.get(id);
      const i = place.get(id);
      const corrected = verdict.verdict === "mislabeled" ? verdict.corrected : "";
      lines.push([id, verdict.verdict, at("given", i), corrected, at("fingerprint", i), reviewer.value.trim(), verdict.time, verdict.note, data.run_id]);
    }
    return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }
  byId("download").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
    const link = h("a", { href: url, download: `verdicts-${data.audit}-${data.started.slice(0, 10)}.csv` });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
  reviewer.addEventListener("change", save);

  // Columns of the table.
  const hasExamples = data.train.length > 0;
  const wide = hasExamples && data.train.some((item) => item.k !== "i" && item.k !== "e");
  const columns = [
    { key: "rank", title: "#", class: "c-rank num", sort: "rank" },
    hasExamples && { key: "show", title: "Example", class: `c-show${wide ? " wide" : ""}` },
    { key: "id", title: "Id", class: "c-id", sort: "id" },
    { key: "labels", title: data.regression ? "Value → expected" : "Label → suggested", class: "c-labels", sort: "given" },
    { key: "p", title: "p_mislabeled", class: "c-p num", sort: "p" },
    rows.state && { key: "state", title: "State", class: "c-state", sort: "state" },
    { key: "verdict", title: "Verdict", class: "c-verdict", sort: "verdict" },
    rows.reason && { key: "reason", title: "Reason", class: `c-reason${wide ? " wide" : ""}` },
  ].filter(Boolean);

  // Search, filters, order.
  const state = { search: "", filters: {}, sort: "rank", down: false, page: 0 };
  let shown = [];
  let haystack = null;
  const verdictOf = (i) => {
    const mine = verdicts.get(rows.id[i]);
    return mine ? mine.verdict : at("verdict", i) || "none";
  };
  // What a view of a class or group shows: rows with this value in this column; null for all.
  let only = null;
  const inView = (i) => only === null || valueOf(only.key, i) === only.value;
  const filterSpecs = [
    rows.state && { key: "state", title: "State" },
    !data.regression && { key: "given", title: "Label" },
    !data.regression && { key: "suggested", title: "Suggested" },
    ...data.groups.map((name, k) => ({ key: `group${k}`, title: name })),
    { key: "verdict", title: "Verdict" },
  ].filter((spec) => spec && (spec.key === "verdict" || rows[spec.key]));
  const NONE = "\u0000none";
  const valueOf = (key, i) => (key === "verdict" ? verdictOf(i) : at(key, i) === null ? NONE : at(key, i));

  function makeFilters() {
    const box = byId("filters");
    box.replaceChildren();
    for (const spec of filterSpecs) {
      if (only && only.key === spec.key) continue;
      const counts = new Map();
      if (spec.key === "verdict") for (const name of ["none", "mislabeled", "correct", "ambiguous"]) counts.set(name, 0);
      else for (let i = 0; i < total; i++) if (inView(i)) counts.set(valueOf(spec.key, i), (counts.get(valueOf(spec.key, i)) || 0) + 1);
      let names = [...counts.keys()];
      if (spec.key !== "verdict") {
        names.sort((a, b) => counts.get(b) - counts.get(a));
        names = names.slice(0, MOST_OPTIONS).sort(compareText);
      }
      const select = h("select", { id: `filter-${spec.key}` }, h("option", { value: "" }, "all"));
      for (const name of names) {
        const words = name === NONE ? "(none)" : name;
        select.append(h("option", { value: `=${name}` }, spec.key === "verdict" ? words : `${words} (${number(counts.get(name))})`));
      }
      select.addEventListener("change", () => setFilter(spec.key, select.value));
      spec.select = select;
      box.append(h("label", {}, spec.title, select));
    }
  }
  function setFilter(key, value) {
    if (value) state.filters[key] = value.slice(1);
    else delete state.filters[key];
    state.page = 0;
    update();
  }
  // The list of a view, or the whole list again, without filters or as they were (`kept`); gives those there were.
  function showOnly(column, kept) {
    const before = { search: state.search, filters: state.filters };
    only = column;
    state.search = kept ? kept.search : "";
    state.filters = kept ? kept.filters : {};
    state.page = 0;
    makeFilters();
    byId("search").value = state.search;
    for (const [key, value] of Object.entries(state.filters)) filterSpecs.find((spec) => spec.key === key).select.value = `=${value}`;
    update();
    return before;
  }
  function countWith(key, value) {
    let count = 0;
    for (let i = 0; i < total; i++) count += valueOf(key, i) === value;
    return count;
  }
  function compare(a, b) {
    const key = state.sort;
    const x = key === "verdict" ? verdictOf(a) : at(key, a);
    const y = key === "verdict" ? verdictOf(b) : at(key, b);
    let order = 0;
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    if (typeof x === "number") order = x - y;
    else order = compareText(x, y);
    return (state.down ? -order : order) || a - b;
  }
  function update() {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !haystack) {
      haystack = rows.id.map((id, i) => [id, at("given", i), at("suggested", i), at("reason", i)].join("\n").toLowerCase());
    }
    const filters = Object.entries(state.filters);
    shown = [];
    for (let i = 0; i < total; i++) {
      if (inView(i) && filters.every(([key, value]) => valueOf(key, i) === value) && words.every((word) => haystack[i].includes(word))) shown.push(i);
    }
    if (state.sort !== "rank" || state.down) shown.sort(compare);
    state.page = Math.min(state.page, lastPage());
    byId("clear").hidden = !filters.length && !words.length;
    let here = total;
    if (only) here = countWith(only.key, only.value);
    byId("count").textContent = shown.length === here ? `${number(here)} ${here === 1 ? "row" : "rows"}` : `${number(shown.length)} of ${number(here)} rows`;
    render();
  }

  // The table: one page of rows at a time.
  const body = byId("body");
  const lastPage = () => Math.max(0, Math.ceil(shown.length / PAGE) - 1);
  function render() {
    const start = state.page * PAGE;
    const here = shown.slice(start, start + PAGE);
    body.replaceChildren(...here.map(makeRow));
    byId("empty").hidden = here.length > 0;
    const pages = lastPage() + 1;
    byId("pager").hidden = pages < 2;
    byId("place").textContent = `rows ${number(start + 1)} to ${number(start + here.length)}`;
    byId("page").value = String(state.page + 1);
    byId("pages").textContent = number(pages);
    for (const id of ["first", "previous"]) byId(id).disabled = state.page === 0;
    for (const id of ["next", "last"]) byId(id).disabled = state.page === pages - 1;
    for (const head of byId("head").children) {
      const mine = head.dataset.sort && head.dataset.sort === state.sort;
      if (mine) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    byId("sort").value = `${state.sort} ${state.down ? "down" : "up"}`;
  }
  function sortBy(key, down) {
    state.sort = key;
    state.down = down;
    state.page = 0;
    update();
  }
  function makeHead() {
    for (const column of columns) {
      const head = h("th", { scope: "col", class: column.class });
      if (column.sort) {
        head.dataset.sort = column.sort;
        // The most doubtful first is what one wants of probabilities.
        const first = column.sort === "p";
        head.append(h("button", { type: "button", onclick: () => sortBy(column.sort, state.sort === column.sort ? !state.down : first) }, column.title));
      } else head.append(column.title);
      byId("head").append(head);
    }
    const options = [["rank up", "most suspect first"], ["p up", "p_mislabeled, lowest first"], ["id up", "id"], ["given up", data.regression ? "value" : "label"], ["verdict up", "verdict"]];
    if (rows.state) options.push(["state up", "state"]);
    for (const column of columns.filter((one) => one.sort)) {
      for (const way of ["up", "down"]) {
        const value = `${column.sort} ${way}`;
        if (!options.some(([one]) => one === value)) options.push([value, null]);
      }
    }
    for (const [value, words] of options) byId("sort").append(h("option", { value, hidden: words === null }, words || value));
    byId("sort").addEventListener("change", (event) => {
      const [key, way] = event.target.value.split(" ");
      sortBy(key, way === "down");
    });
  }

  const item = (set, index) => (index >= 0 && index !== undefined ? data[set][index] : null);
  function labels(i) {
    const [given, suggested] = [at("given", i), at("suggested", i)];
    return h("span", { class: "labels" },
      h("span", { class: "label", title: given }, given),
      h("span", { class: "to-what" }, h("span", { class: "arrow", role: "img", "aria-label": "suggested" }, "→"),
        suggested === null ? h("span", { class: "quiet" }, "none fits") : h("span", { class: "label to", title: suggested }, suggested)));
  }
  function probability(i) {
    const p = at("p", i);
    const fill = h("span", { class: "fill" });
    fill.style.width = `${100 * (p || 0)}%`;
    fill.style.display = "block";
    return h("span", { class: "p" }, h("span", { class: "track", "aria-hidden": "true" }, fill), digits(p, 3));
  }
  function chip(i) {
    const verdict = verdictOf(i);
    if (verdict === "none") return h("span", { class: "quiet" }, "");
    const mine = verdicts.get(rows.id[i]);
    const corrected = mine ? mine.corrected : at("corrected", i);
    return h("span", { class: `chip ${verdict}`, title: mine ? null : "imported earlier" }, verdict === "mislabeled" && corrected ? `is ${corrected}` : verdict);
  }
  function stateChip(i) {
    const words = at("state", i);
    if (words === null) return "";
    const nights = at("nights", i);
    return h("span", { class: `chip ${words === "new" || words === "reopened" ? words : ""}`, title: nights ? `listed in ${nights} nights, first on ${night(at("first_seen", i))}` : null }, words);
  }
  const reason = (i) => at("reason", i) && cutIn(at("reason", i), [at("given", i), at("suggested", i), at("duplicate_label", i)]);
  const makers = {
    rank: (i) => number(at("rank", i)),
    show: (i) => thumb(item("train", at("own", i))),
    id: (i) => rows.id[i],
    labels,
    p: probability,
    state: stateChip,
    verdict: chip,
    reason: (i) => h("span", { class: wide ? "one-line" : "clamp", title: at("reason", i) }, reason(i) || ""),
  };
  function makeRow(i) {
    const row = h("tr", { class: "row", tabindex: "0", "aria-expanded": "false" });
    row.dataset.row = String(i);
    for (const column of columns) {
      row.append(h("td", { class: column.class, title: column.key === "id" ? rows.id[i] : null }, makers[column.key](i)));
    }
    return row;
  }
  const rowOf = (target) => (target instanceof Element ? target.closest("tr.row") : null);
  function toggle(row, open) {
    const isOpen = row.getAttribute("aria-expanded") === "true";
    if (open === isOpen) return;
    row.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) row.nextElementSibling.remove();
    else row.after(h("tr", { class: "detail" }, h("td", { colspan: String(columns.length) }, evidence(Number(row.dataset.row), row))));
  }
  body.addEventListener("click", (event) => {
    const row = rowOf(event.target);
    if (row && !String(window.getSelection())) toggle(row);
  });
  function step(row, by) {
    let next = row;
    do next = by > 0 ? next.nextElementSibling : next.previousElementSibling;
    while (next && !next.classList.contains("row"));
    if (next) next.focus();
  }
  body.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = rowOf(event.target);
    if (event.key === "Escape") {
      const detail = event.target.closest("tr.detail");
      const own = row || (detail && detail.previousElementSibling);
      if (own) {
        toggle(own, false);
        own.focus();
      }
      return;
    }
    if (!row) return;
    const verdict = { m: "mislabeled", c: "correct", a: "ambiguous" }[event.key];
    if (event.key === "Enter" || event.key === " ") toggle(row);
    else if (event.key === "ArrowDown" || event.key === "j") step(row, 1);
    else if (event.key === "ArrowUp" || event.key === "k") step(row, -1);
    else if (verdict) decide(Number(row.dataset.row), row, { verdict });
    else return;
    event.preventDefault();
  });

  // What is known of a row, and what is to be decided. A note may come before its verdict.
  const pendingNotes = new Map();
  function decide(i, row, change) {
    const id = rows.id[i];
    const before = verdicts.get(id) || { verdict: null, corrected: at("suggested", i) || "", note: pendingNotes.get(id) || "" };
    const after = { ...before, ...change, time: new Date().toISOString() };
    if (after.verdict) verdicts.set(id, after);
    else verdicts.delete(id);
    save();
    row.querySelector(".c-verdict").replaceChildren(chip(i));
    const detail = row.nextElementSibling;
    if (detail && detail.classList.contains("detail")) refresh(detail, i);
  }
  function refresh(detail, i) {
    const mine = verdicts.get(rows.id[i]);
    for (const button of detail.querySelectorAll("[data-verdict]")) {
      button.setAttribute("aria-pressed", String(Boolean(mine) && mine.verdict === button.dataset.verdict));
    }
    detail.querySelector(".corrected").hidden = !mine || mine.verdict !== "mislabeled";
  }
  function verdictForm(i, row) {
    const mine = verdicts.get(rows.id[i]);
    const form = h("div", { class: "verdict", role: "group", "aria-label": `Verdict on ${rows.id[i]}` });
    const choices = h("div", { class: "choices" });
    for (const verdict of ["mislabeled", "correct", "ambiguous"]) {
      choices.append(h("button", {
        type: "button", "data-verdict": verdict, "aria-pressed": String(Boolean(mine) && mine.verdict === verdict),
        onclick: () => {
          const now = verdicts.get(rows.id[i]);
          decide(i, row, { verdict: now && now.verdict === verdict ? null : verdict });
        },
      }, verdict[0].toUpperCase() + verdict.slice(1)));
    }
    const corrected = h("input", {
      type: "text", list: data.classes.length ? "classes" : null, autocomplete: "off",
      value: mine ? mine.corrected : at("suggested", i) || "",
      onchange: (event) => {
        const value = event.target.value.trim();
        const same = value === at("given", i);
        event.target.setCustomValidity(same ? "This is the label that the data have: take Correct for it." : "");
        if (same) event.target.reportValidity();
        else decide(i, row, { corrected: value });
      },
    });
    const note = h("input", {
      type: "text", autocomplete: "off", maxlength: "2000", value: mine ? mine.note : pendingNotes.get(rows.id[i]) || "",
      onchange: (event) => {
        if (verdicts.has(rows.id[i])) decide(i, row, { note: event.target.value });
        else pendingNotes.set(rows.id[i], event.target.value);
      },
    });
    form.append(choices,
      h("label", { class: "corrected", hidden: !mine || mine.verdict !== "mislabeled" }, data.regression ? "Corrected value" : "Corrected label", corrected),
      h("label", { class: "note-field" }, "Note", note));
    return form;
  }

  function strip(title, cards, label = null) {
    return cards.length ? h("div", { class: "strip" }, h("h4", { title: whole(label) }, title), h("div", { class: "cards" }, cards)) : null;
  }
  function fact(name, value) {
    if (value === null || value === undefined || value === "–") return null;
    return h("div", {}, h("dt", {}, name), h("dd", typeof value === "string" ? { title: whole(value) } : {}, typeof value === "string" ? cut(value) : value));
  }
  function evidence(i, row) {
    const [given, suggested] = [at("given", i), at("suggested", i)];
    // A neighbour whose own label is doubtful speaks less for either.
    const doubtful = (id) => place.has(id) && "on the list too";
    const near = (list) => (list || []).map(([id, far, index]) => card(id, item("train", index), `distance ${significant(far)}`, doubtful(id)));
    const duplicate = at("duplicate", i);
    const said = reason(i);
    const strips = h("div", { class: "strips full" },
      duplicate && strip(duplicate[1] === 0 ? "Same features, another label" : "Nearly the same, another label",
        [card(duplicate[0], item("train", duplicate[2]), `labelled ${cut(at("duplicate_label", i))}`, doubtful(duplicate[0]))]),
      strip(data.regression ? "Nearest examples" : `Nearest labelled ${cut(given)}`, near(at("near_given", i)), given),
      strip(`Nearest labelled ${cut(suggested)}`, suggested === null ? [] : near(at("near_suggested", i)), suggested),
      strip("Test points it harms most", (at("harmed", i) || []).map(([id, influence, index, label, predicted]) =>
        card(id, item("test", index), label === null ? "" : predicted === label ? `labelled ${cut(label)}` : `labelled ${cut(label)}, predicted ${cut(predicted)}`, `loss +${significant(-influence)}`))));
    const facts = h("dl", { class: "facts" },
      fact(data.regression ? "Value" : "Given label", data.regression ? given : h("a", { href: address("class", given), title: whole(given) }, cut(named(given)))),
      fact(data.regression ? "Expected" : "Suggested", suggested === null ? "no label fits" : suggested),
      fact("p_mislabeled", digits(at("p", i), 3)),
      data.regression ? null : fact("Suggested, probability", at("probability", i) === null ? null : digits(at("probability", i), 3)),
      fact("Predicted", at("predicted", i)),
      fact("Self-influence", at("self_influence", i) === null ? null : significant(at("self_influence", i))),
      fact("State", at("state", i)),
      fact("Nights on the list", at("nights", i)),
      fact("First listed", night(at("first_seen", i))),
      fact("Moved", at("moved", i) === null ? null : at("moved", i) === 0 ? "kept its place" : `${number(Math.abs(at("moved", i)))} ${at("moved", i) > 0 ? "up" : "down"}`),
      data.groups.map((name, k) => fact(name, h("a", { href: address("group", name, at(`group${k}`, i)), title: whole(at(`group${k}`, i)) }, cut(named(at(`group${k}`, i)))))));
    return h("div", { class: `evidence${wide ? " wordy" : ""}` },
      h("div", { class: "own" }, picture(item("train", at("own", i)), false)),
      h("div", { class: "case" },
        h("p", { title: said === at("reason", i) ? null : at("reason", i) }, said || "Beyond the rows that get a reason (detection.evidence)."),
        facts, verdictForm(i, row)),
      strips);
  }

  // Controls.
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.search = event.target.value;
      state.page = 0;
      update();
    }, 80);
  });
  byId("clear").addEventListener("click", () => {
    state.search = "";
    state.filters = {};
    byId("search").value = "";
    makeFilters();
    update();
    byId("search").focus();
  });
  function turn(to) {
    state.page = to;
    render();
    byId("list").scrollIntoView();
    const first = body.querySelector("tr.row");
    if (first) first.focus({ preventScroll: true });
  }
  const targets = { first: () => 0, previous: () => state.page - 1, next: () => state.page + 1, last: lastPage };
  for (const [id, target] of Object.entries(targets)) byId(id).addEventListener("click", () => turn(target()));
  // The nearest page there is; what is no number changes nothing. Leaving the field turns no page.
  byId("page").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const asked = /^\s*(\d[\d,]*)/.exec(event.target.value);
    if (asked) turn(Math.min(Math.max(Number(asked[1].replaceAll(",", "")) - 1, 0), lastPage()));
    else event.target.value = String(state.page + 1);
  });
  byId("page").addEventListener("blur", (event) => {
    event.target.value = String(state.page + 1);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      byId("search").focus();
    }
  });

  document.body.append(h("datalist", { id: "classes" }, data.classes.map((label) => h("option", { value: label }))));
  load();
  makeHead();
  makeFilters();
  update();
  tray();
  return { data, at, total, showOnly, countWith, NONE };
})();
