
// Views of one class or one group, at #class=<label> and #group=<column>=<value>.
(() => {
  const { h, number, significant, address, named, cut, whole } = writing;
  const { data, at, total, showOnly, countWith, NONE } = page;
  const main = document.getElementById("main");
  const view = document.getElementById("view");
  const sides = document.getElementById("sides");
  const title = document.title;
  const average = data.errors / data.total;
  // Where the reader was before the first of some views, to come back to.
  let left = null;

  // What an address asks for: {kind, column, value}; null for the whole page.
  function asked(hash) {
    const found = /^#(class|group)=(.*)$/s.exec(hash);
    if (!found) return null;
    let parts;
    try {
      parts = found[2].split("=").map(decodeURIComponent);
    } catch {
      return null;
    }
    if (found[1] === "class") return data.regression ? null : { kind: "class", value: parts[0] };
    return data.groups.includes(parts[0]) ? { kind: "group", column: parts[0], value: parts.length > 1 ? parts[1] : null } : null;
  }

  function percent(share) {
    const value = 100 * share;
    if (value > 0 && value < 0.05) return "under 0.1%";
    if (value >= 99.5 && value < 100) return "over 99%";
    return `${value.toFixed(value >= 9.95 || value === 0 ? 0 : 1)}%`;
  }
  const count = (value) => (value >= 9.95 ? number(Math.round(value)) : value.toFixed(1));
  const figure = (value, name, meaning) =>
    h("div", {}, h("dt", {}, name), h("dd", { class: "value" }, value), h("dd", { class: "meaning" }, meaning));
  function figures(rows, suspects, errors, low, high, rate) {
    const times = average > 0 ? `${(rate / average).toFixed(1)} times the average` : null;
    return [
      figure(number(rows), rows === 1 ? "row" : "rows", `${percent(rows / data.total)} of the data`),
      figure(number(suspects), "on the list", `${percent(suspects / rows)} of its rows`),
      figure(`≈ ${count(errors)}`, "wrong labels", `between ${count(low)} and ${count(high)}`),
      figure(percent(rate), "of its labels are wrong", times),
    ];
  }
  function pairs(words, list, most, more) {
    if (!list.length) return h("div", { class: "pairs" }, h("h3", {}, words), h("p", { class: "quiet" }, "No pair worth naming."));
    const rows = list.map(([label, errors, link]) => {
      const fill = h("span", { class: "fill" });
      fill.style.width = `${(100 * errors) / most}%`;
      fill.style.display = "block";
      return h("tr", {}, h("th", { scope: "row" }, link ? h("a", { class: "link", href: link, title: whole(label) }, cut(named(label))) : label),
        h("td", { class: "num" }, count(errors)), h("td", { class: "track-cell" }, h("span", { class: "track", "aria-hidden": "true" }, fill)));
    });
    return h("div", { class: "pairs" }, h("h3", {}, words), h("table", { class: "plain-table" }, h("tbody", {}, rows)),
      more > 0 && h("p", { class: "quiet" }, `and ${number(more)} more`));
  }
  function classPairs(value, truly, given, moreTruly, moreGiven) {
    const most = Math.max(...[...truly, ...given].map(([, errors]) => errors), 0);
    const linked = (list) => list.map(([label, errors]) => [label, errors, address("class", label)]);
    return h("div", { class: "plots" },
      pairs(`Labelled ${cut(named(value))}, but truly`, linked(truly), most, moreTruly),
      pairs(`Truly ${cut(named(value))}, but labelled`, linked(given), most, moreGiven));
  }
  // Pairs of labels among the rows of a group that are on the page.
  function groupPairs(key, value) {
    const counts = new Map();
    for (let i = 0; i < total; i++) {
      const suggested = at("suggested", i);
      if (at(key, i) !== value || suggested === null) continue;
      const pair = `${cut(named(at("given", i)))} → ${cut(named(suggested))}`;
      counts.set(pair, (counts.get(pair) || 0) + 1);
    }
    const list = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 6);
    return h("div", { class: "plots" }, pairs("Its rows on this page, label → suggested", list, list.length ? list[0][1] : 1, counts.size - list.length));
  }

  function back(kind) {
    const words = kind === "class" ? "All classes" : "All groups";
    const there = kind === "class" ? "classes" : "groups";
    return h("p", { class: "crumbs" }, h("a", { href: document.getElementById(there) ? `#${there}` : "#list" }, `← ${words}`));
  }
  const unknown = (file) => h("p", { class: "sub" }, `This page has no figures of it; ${file} has those of all there are.`);

  function showClass(value) {
    const line = (data.views.classes || []).find(([label]) => label === value);
    view.replaceChildren(back("class"), h("h2", { id: "view-title", tabindex: "-1" }, "Class ", h("span", { class: "label" }, named(value))),
      ...(line ? [h("dl", { class: "figures" }, figures(...line.slice(1, 7))), classPairs(value, ...line.slice(7))] : [unknown("classes.parquet")]));
    const choices = [["given", `Labelled ${cut(named(value))}`], ["suggested", `Suggested ${cut(named(value))}`]];
    function choose(key) {
      for (const button of sides.children) button.setAttribute("aria-pressed", String(button.dataset.side === key));
      return showOnly({ key, value });
    }
    sides.replaceChildren(...choices.map(([key, words]) =>
      h("button", { type: "button", "data-side": key, onclick: () => choose(key) }, `${words} (${number(countWith(key, value))})`)));
    sides.hidden = false;
    return choose("given");
  }
  function showGroup(column, value) {
    const key = `group${data.groups.indexOf(column)}`;
    const line = (data.views.groups || []).find(([name, one]) => name === column && one === value);
    const found = [];
    if (line) {
      const harm = line[9];
      const influence = harm === null ? null : figure(significant(harm), "harm",
        `what its rows do to the mean test loss: ${harm > 0 ? "the model would be better without them" : "the model is better with them"}`);
      found.push(h("dl", { class: "figures" }, figures(...line.slice(2, 8)), influence));
      if (!data.regression) found.push(groupPairs(key, value));
    } else found.push(unknown("groups.parquet"));
    view.replaceChildren(back("group"), h("h2", { id: "view-title", tabindex: "-1" }, `${column} `, h("span", { class: "label" }, named(value))), ...found);
    sides.hidden = true;
    return showOnly({ key, value: value === null ? NONE : value });
  }

  function leave() {
    main.classList.remove("viewing");
    view.hidden = true;
    sides.hidden = true;
    view.replaceChildren();
    document.title = title;
    showOnly(null, left.filters);
    const target = document.getElementById(location.hash.slice(1));
    if (location.hash === left.hash || !target) {
      window.scrollTo(0, left.y);
      if (left.focus.isConnected) left.focus.focus({ preventScroll: true });
    } else {
      target.scrollIntoView();
      if (target.tabIndex < 0) target.tabIndex = -1;
      target.focus({ preventScroll: true });
    }
    left = null;
  }
  function route(before) {
    const wanted = asked(location.hash);
    if (!wanted) {
      if (left) leave();
      return;
    }
    const from = { hash: before, y: window.scrollY, focus: document.activeElement };
    const filters = wanted.kind === "class" ? showClass(wanted.value) : showGroup(wanted.column, wanted.value);
    if (!left) left = { ...from, filters };
    main.classList.add("viewing");
    view.hidden = false;
    document.title = `${wanted.kind === "class" ? "Class" : wanted.column} ${named(wanted.value)} · ${title}`;
    view.scrollIntoView();
    document.getElementById("view-title").focus({ preventScroll: true });
  }
  window.addEventListener("hashchange", (event) => route(new URL(event.oldURL).hash));
  route("");
})();
document.documentElement.dataset.ready = String(Math.round(performance.now()));
