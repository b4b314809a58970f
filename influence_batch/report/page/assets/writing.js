"use strict";
// What the list (page.js) and the views (views.js) write with.
const writing = (() => {
  function h(tag, props, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "value") node.value = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat()) {
      if (child !== null && child !== undefined && child !== false) node.append(child);
    }
    return node;
  }
  const number = (value) => value.toLocaleString("en-US");
  const digits = (value, n) => (value === null || value === undefined ? "–" : value.toFixed(n));
  // The night of a run's id, 20261118T020000Z.
  const night = (run) => (run === null ? null : run.replace(/^(\d{4})(\d\d)(\d\d)T\d{6}Z.*$/, "$1-$2-$3"));
  const significant = (value) => (value === null ? "–" : Number(value.toPrecision(3)).toString());

  // The view of a class or a group; a null value has no part of the address.
  const address = (kind, ...parts) => `#${kind}=${parts.filter((part) => part !== null).map(encodeURIComponent).join("=")}`;
  const named = (value) => (value === null ? "(none)" : value === "" ? "(empty)" : value);

  // Labels in sentences and headings: one as long as a page would fill the screen.
  const LONGEST = 60;
  const cut = (text) => (text !== null && text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);
  // A sentence with some labels cut, the longest first, for one may hold another.
  function cutIn(sentence, labels) {
    const long = labels.filter((label) => label && label.length > LONGEST).sort((a, b) => b.length - a.length);
    return long.reduce((said, label) => said.replaceAll(label, () => cut(label)), sentence);
  }
  // The title that tells a cut text in full.
  const whole = (text) => (text !== null && text.length > LONGEST ? text : null);
  const collator = new Intl.Collator(undefined, { numeric: true });
  const compareText = (a, b) => collator.compare(a, b);

  // A spreadsheet runs a cell that begins like a formula; an apostrophe before it makes it text (see cells.py).
  function cellWriter(guard) {
    const formula = new RegExp(`^(?:${guard.formula})`);
    const plainNumber = new RegExp(`^(?:${guard.number})$`);
    return (value) => {
      let text = value === null || value === undefined ? "" : String(value);
      if (formula.test(text) && !plainNumber.test(text)) text = `'${text}`;
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
  }
  return { h, number, digits, night, significant, address, named, cut, cutIn, whole, compareText, cellWriter };
})();
