// Looks at a report's page as a reader does; what it found goes to an element of its own.
"use strict";
(() => {
  document.body.offsetHeight; // lays the page out, so that the time below includes it
  const rendered = performance.now(), checks = [], facts = {};
  const expect = (name, passed, detail = "") => checks.push({ name, passed: !!passed, detail: String(detail) });
  const data = JSON.parse(byId("report").textContent), all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const close = (a, b, part) => Math.abs(a - b) <= part * Math.abs(b);
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
  facts.milliseconds = Math.round(rendered);
  expect("shows its report", !byId("main").hidden);
  expect("page is not wider than the window", document.documentElement.scrollWidth <= innerWidth, document.documentElement.scrollWidth);

  // Treemap
  const expected = data.blobs.filter(b => b.kept).reduce((n, b) => n + b.size, 0) + data.layers.reduce((n, l) => n + l.bytes, 0);
  const leaves = all("#treemap rect[data-bytes]"), bytesOf = leaf => Number(leaf.dataset.bytes);
  const total = Number(byId("treemap").dataset.total), added = leaves.reduce((n, leaf) => n + bytesOf(leaf), 0);
  Object.assign(facts, { leaves: leaves.length, bytes: total });
  expect("leaves add up to data-total and to the JSON", added === total && total === expected, `${added} ${total} ${expected}`);
  expect("at most 1500 leaves", leaves.length <= 1500 && all("#treemap rect").length === leaves.length, leaves.length);
  const svg = document.querySelector("#treemap svg")?.getBoundingClientRect();
  if (total) {
    const off = { attributes: 0, pixels: 0 };
    let covered = 0, measured = 0;
    for (const leaf of leaves) {
      const wanted = bytesOf(leaf) / total * svg.width * svg.height, box = leaf.getBoundingClientRect();
      const exact = leaf.getAttribute("width") * leaf.getAttribute("height");
      off.attributes = Math.max(off.attributes, Math.abs(exact / wanted - 1));
      covered += exact;
      if (Math.min(box.width, box.height) < 1) continue; // below a pixel the browser's own rounding is what would be measured
      measured++;
      off.pixels = Math.max(off.pixels, Math.abs(box.width * box.height / wanted - 1));
      expect("leaf inside the map", box.left >= svg.left - .1 && box.right <= svg.right + .1 && box.top >= svg.top - .1 && box.bottom <= svg.bottom + .1);
    }
    facts.measured = measured;
    facts.areaError = off.pixels.toExponential(1);
    expect("areas are proportional", off.attributes < 1e-6 && off.pixels < .01, JSON.stringify(off));
    expect("leaves cover the map", close(covered, svg.width * svg.height, 1e-6));
    const boxes = leaves.map(leaf => ["x", "y", "width", "height"].map(name => Number(leaf.getAttribute(name))));
    const overlaps = boxes.some(([ax, ay, aw, ah], i) => boxes.some(([bx, by, bw, bh], j) =>
      i < j && Math.min(ax + aw, bx + bw) - Math.max(ax, bx) > 1e-6 && Math.min(ay + ah, by + bh) - Math.max(ay, by) > 1e-6));
    expect("leaves do not overlap", !overlaps);
    leaves[0].dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 200, clientY: 200 }));
    expect("tooltip on hover", !byId("tip").hidden && /blob|snapshot/.test(byId("tip").textContent), byId("tip").textContent);
    leaves[0].focus();
    leaves[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    expect("arrow key moves the focus", leaves.length < 2 || document.activeElement === leaves[1] && !byId("tip").hidden);
    document.activeElement.blur();
    expect("tooltip goes away", byId("tip").hidden);
  } else {
    expect("empty map says so", !leaves.length && byId("treemap").textContent.includes("Nothing"));
  }

  // Timeline
  const bars = all("#timeline rect"), timed = [...data.blobs, ...data.layers].filter(part => part.start != null);
  facts.bars = bars.length;
  const counted = bars.reduce((n, bar) => n + Number(bar.dataset.count), 0);
  expect("the bars stand for every interval", counted === timed.length, `${counted} ${timed.length}`);
  const lanes = new Map();
  bars.forEach(bar => lanes.set(bar.getAttribute("y"), [...(lanes.get(bar.getAttribute("y")) ?? []), bar]));
  const crowded = [...lanes.values()].some(lane => lane.some((bar, i) =>
    i && Number(bar.getAttribute("x")) < Number(lane[i - 1].getAttribute("x")) + Number(lane[i - 1].getAttribute("width")) - 1.001));
  expect("bars of one lane do not overlap", !crowded);
  facts.lanes = lanes.size;
  const longest = timed.filter(part => part.end != null).map(part => part.end - part.start).sort((a, b) => b - a)[0];
  if (bars.length) {
    const span = Math.max(data.seconds, ...timed.map(part => part.end ?? part.start)), widest = Math.max(...bars.map(bar => Number(bar.getAttribute("width"))));
    expect("bars are as long as their time", close(widest, longest / span * (document.querySelector("#timeline svg").viewBox.baseVal.width - 32), .01));
  }

  // Table
  const rows = () => all("#images > tbody"), cell = (row, index) => row.rows[0].cells[index], nameOf = row => cell(row, 0).querySelector("bdi").textContent;
  const byName = new Map(data.images.map(image => [image.name, image])), imageOf = row => byName.get(nameOf(row));
  expect("every name as it is", same(rows().map(nameOf), data.images.map(image => image.name)));
  const click = label => all("#images > thead button").find(button => button.textContent === label).click();
  const sortOf = label => all("#images > thead th").find(head => head.textContent === label).getAttribute("aria-sort");
  const ordered = (values, before) => values.every((value, i) => !i || !before(value, values[i - 1]));
  click("Compressed");
  expect("sorts by compressed, descending", sortOf("Compressed") === "descending" && ordered(rows().map(row => imageOf(row).compressed), (a, b) => a > b));
  click("Compressed");
  expect("sorts by compressed, ascending", sortOf("Compressed") === "ascending" && ordered(rows().map(row => imageOf(row).compressed), (a, b) => a < b));
  click("Time");
  expect("sorts by time, unknown last", ordered(rows().map(row => imageOf(row).seconds ?? -1), (a, b) => a > b));
  click("Image");
  const inOrder = data.images.map(image => image.name).sort(new Intl.Collator("en", { numeric: true }).compare);
  expect("sorts by name", same(rows().map(nameOf), inOrder) && sortOf("Image") === "ascending" && !sortOf("Time") && all("[aria-sort]").length === 1);
  const search = text => {
    byId("search").value = text;
    byId("search").dispatchEvent(new Event("input", { bubbles: true }));
    return rows().filter(row => !row.hidden);
  };
  const n = data.images.length, shown = k => byId("count").textContent === `${k} of ${n}`;
  for (const text of [data.images.at(-1)?.name ?? "x", "COREDNS", "rule 2", "failed", "no such thing"]) {
    const hits = search(text), wanted = row => [row.rows[0].textContent, imageOf(row).digest, imageOf(row).error].join("\n").toLowerCase().includes(text.trim().toLowerCase());
    expect(`search ${text.slice(0, 20)}`, shown(hits.length) && same(hits, rows().filter(wanted)) && rows().filter(row => row.hidden).every(row => !row.offsetHeight), hits.length);
    if (text === "no such thing") expect("search finds nothing", !hits.length);
    if (text === data.images.at(-1)?.name) expect("search finds a name", hits.length >= 1 && hits.every(row => imageOf(row)));
  }
  search("");
  expect("empty search shows all", shown(n));
  if (n >= 70 && innerWidth > 1180) {
    scrollTo(0, byId("images").getBoundingClientRect().top + scrollY + 300);
    expect("table head stays in view", Math.abs(document.querySelector("#images th").getBoundingClientRect().top) < 1);
    scrollTo(0, 0);
  }
  if (n <= 70) {
    byId("expand").click();
    expect("all rows open", rows().every(row => !row.rows[1].hidden));
    byId("expand").click();
  }
  for (const row of rows().slice(0, 5)) {
    cell(row, 0).querySelector("button").click();
    const image = imageOf(row), parts = new Set(image.blobs).size + new Set(image.layers).size;
    expect("row opens with blobs and layers", !row.rows[1].hidden && all(":scope table > tbody > tr", row.rows[1]).length === parts && (!image.digest || row.rows[1].textContent.includes(image.digest)));
    cell(row, 0).querySelector("button").click();
    expect("row closes", row.rows[1].hidden);
  }

  // Allowlist, bill, failures
  const [head, ...lines] = byId("yaml").textContent.trimEnd().split("\n"), list = data.preloadedImagesVerificationAllowlist;
  const read = line => JSON.parse(line.replace(/^- /, "").replace(/\\U([0-9a-f]{8})/g, (_, code) => String.fromCodePoint(parseInt(code, 16))));
  expect("allowlist", head === (list.length ? "preloadedImagesVerificationAllowlist:" : "preloadedImagesVerificationAllowlist: []") && same(lines.map(read), list));
  expect("allowlist is plain ASCII", /^[\x20-\x7e\n]*$/.test(byId("yaml").textContent));
  expect("bill of materials", all("#bom > tbody > tr").length === data.bill_of_materials.length && !!byId("bom") === data.bill_of_materials.length > 0 && data.bill_of_materials.every((entry, i) => byId("bom").tBodies[0].rows[i].cells[0].textContent === entry.name));
  const failed = data.images.filter(image => !image.ok);
  expect("failures", byId("failures").hidden === !failed.length && same(all("#failures h3").map(h => h.textContent), failed.map(image => image.name)) && failed.every(image => byId("failures").textContent.includes(image.error ?? "")));

  // Hostile input
  const attributes = all("*").flatMap(element => [...element.attributes].map(({ name, value }) => ({ name, value })));
  expect("no element from data", !all("img, iframe, object, embed, b, base, form").length && all("script").length === 4, all("script").length);
  expect("no handlers, no foreign addresses", attributes.every(({ name, value }) => !/^on/.test(name) && (!/^(src|href|action)$/.test(name) || /^(#|data:,$)/.test(value))));
  expect("nothing was run", !window.alerted);
  const markup = "<img src=x onerror=alert(1)>";
  if (byId("report").textContent.includes("onerror")) expect("markup is shown as text", byId("failures").textContent.includes(markup));

  const broken = checks.filter(check => !check.passed);
  document.body.append(make("pre", { id: "check-result" }, JSON.stringify({ passed: checks.length - broken.length, broken: broken.slice(0, 10), facts }).replace(/[^\x20-\x7e]/g, "?")));
})();
