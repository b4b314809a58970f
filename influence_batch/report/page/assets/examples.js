// How an example looks in the list (page.js): in its row, in its evidence, and as a neighbour there.
function examplesOf(names) {
  const { h } = writing;
  function thumb(own) {
    if (!own) return "";
    if (own.k === "i") return h("img", { class: `thumb${own.w <= 64 ? " pixel" : ""}`, src: own.s, alt: "" });
    if (own.k === "t") return h("span", { class: "snippet clamp" }, own.s.slice(0, 160));
    if (own.k === "a") return h("span", { class: "snippet clamp" }, own.p.split("/").pop());
    if (own.k === "r") return h("span", { class: "snippet clamp" }, own.r.slice(0, 3).map(([name, value]) => `${names[name]} ${value}`).join(" · "));
    return h("span", { class: "missing clamp" }, own.s);
  }
  function picture(one, small) {
    if (!one) return small ? null : h("p", { class: "missing" }, "The example itself is not in this page.");
    if (one.k === "i") return h("img", { class: `picture${one.w <= 64 ? " pixel" : ""}`, src: one.s, alt: "the example" });
    if (one.k === "t") return h("p", { class: "text" }, one.m ? `${one.s}…` : one.s);
    if (one.k === "a") {
      return h("div", {}, one.s ? h("audio", { controls: true, preload: "none", src: one.s }) : null,
        h("p", { class: "missing" }, one.e ? `${one.p} (not playable here: ${one.e})` : one.p));
    }
    if (one.k === "r") {
      const table = h("table", { class: "cells" });
      for (const [name, value, away] of small ? one.r.slice(0, 4) : one.r) {
        const far = away !== null && Math.abs(away) >= 2;
        const words = away === null ? "" : Math.abs(away) < 0.05 ? "usual" : `${Math.abs(away).toFixed(1)} sd ${away > 0 ? "above" : "below"}`;
        table.append(h("tr", {}, h("td", {}, names[name].replaceAll("_", "_\u200b")), h("td", { class: "num" }, value), h("td", { class: `away${far ? " far" : ""}` }, words)));
      }
      return table;
    }
    return h("p", { class: "missing" }, one.s);
  }
  function card(id, one, ...lines) {
    const wordy = one && one.k !== "i";
    if (wordy) {
      const facts = lines.filter(Boolean).join(", ");
      return h("div", { class: "card wordy" }, h("div", {}, h("span", { class: "id" }, id), ` ${facts}`), picture(one, true));
    }
    return h("div", { class: "card" }, picture(one, true), h("div", { class: "id" }, id), lines.filter(Boolean).map((line) => h("div", {}, line)));
  }
  return { thumb, picture, card };
}
