// The page at /ui, in a real Chromium: what it shows of a live fleet, of 500 pods, of strange names, and of a
// picker that is gone; in light and dark, by keyboard, and as axe-core reads it for those who do not see it.
//
// node --input-type=module - URL SCREENSHOT < tests/ui.mjs, in the folder of its packages: see make test-ui.

import assert from "node:assert/strict";
import fs from "node:fs";
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

const [url, screenshot] = process.argv.slice(2);
const axe = fs.readFileSync("node_modules/axe-core/axe.min.js", "utf8");
const browser = await puppeteer.launch({args: chromium.args, executablePath: await chromium.executablePath(), headless: "shell"});

// A page whose console must stay empty; `answers` are told in place of what the picker says.
async function open(scheme, answers = {}, width = 1280) {
  const page = await browser.newPage();
  page.complaints = [];
  page.on("console", message => page.complaints.push(message.text()));
  page.on("pageerror", error => page.complaints.push(String(error)));
  await page.setViewport({width, height: 900, deviceScaleFactor: 1});
  await page.emulateMediaFeatures([{name: "prefers-color-scheme", value: scheme}, {name: "prefers-reduced-motion", value: "reduce"}]);
  await page.setRequestInterception(true);
  page.on("request", request => {
    const name = new URL(request.url()).pathname.slice(1);
    const answer = name in answers ? answers[name] : undefined;
    if (answer === undefined) request.continue();
    else if (answer === null) request.abort();
    else if (typeof answer === "string") request.respond({status: 403, body: answer});
    else request.respond({contentType: "application/json", body: JSON.stringify(answer)});
  });
  await page.goto(url);
  await page.waitForSelector("body[data-drawn]");
  return page;
}

async function accessible(page, what) {
  await page.evaluate(axe);
  const {violations} = await page.evaluate(() => window.axe.run());
  assert.deepEqual(violations.map(one => [one.id, one.nodes.map(node => node.target.join() + ": " + node.failureSummary).slice(0, 3)]), [], what);
}

const texts = (page, selector) => page.$$eval(selector, all => all.map(one => one.textContent));
const told = page => page.$eval("#details", one => one.textContent);

async function live(scheme) {
  const page = await open(scheme);
  await page.waitForFunction(() => document.querySelectorAll("#decisions tr").length > 5 && document.querySelectorAll("#prefixes button").length > 1);
  const endpoints = await (await fetch(url.replace("/ui", "/endpoints"))).json();
  assert.equal((await page.$$("#fleet button")).length, endpoints.length);
  assert.equal((await page.$$("#fleet button.live")).length, endpoints.length, "all are live");
  assert.deepEqual(await texts(page, "#fleet .name"), endpoints.map(one => one.name));
  await page.click("#fleet button");
  await page.waitForFunction(name => document.querySelector("#details h3").textContent === name, {}, endpoints[0].name);
  assert.match(await told(page), /blocks/);
  await page.click("#prefixes button");
  await page.waitForFunction(() => document.querySelector("#details h3").textContent === "A prefix");
  assert.ok((await page.$$("#fleet .holds")).length > 1, "who holds the prefix is marked");
  await page.click("#decisions button");
  await page.waitForFunction(() => document.querySelectorAll("#details tbody tr").length > 1);
  await accessible(page, scheme);
  if (screenshot && scheme === "light") {
    await page.click("#prefixes button");
    await page.waitForFunction(() => document.querySelector("#details h3").textContent === "A prefix");
    await page.evaluate(() => { document.activeElement.blur(); for (const one of [window, ...document.querySelectorAll(".scroll")]) one.scrollTo(0, 0); });
    await page.setViewport({width: 1280, height: 1000, deviceScaleFactor: 1});
    await page.screenshot({path: screenshot});
  }
  assert.deepEqual(page.complaints, []);
  await page.close();
}

// 500 pods: trees of 96 prefixes, held by a half each.
function many() {
  const trusts = ["live", "live", "live", "live", "live", "learning", "doubtful", "silent"];
  const names = Array.from({length: 500}, (_, at) => "vllm-qwen3-" + at);
  const endpoints = names.map((name, at) => ({name, pools: [at % 2 ? "llama" : "qwen"], address: "10.0.0.1:8000", trust: trusts[at % 8], reason: "so", since_s: at, blocks: 30000 + at, own_copies: 30 * at, cache_blocks: 16000, requests: at % 9, queued_tokens: 100 * (at % 9), pace: null, avoided: at % 50 === 0, says: null}));
  const score = {compared: 100, exact: 97, over: 2, under: 1, predicted_tokens: 9, reported_tokens: 9, error_tokens: 640, causes: {event_lag: 2, unknown: 1}, lately_wrong: 0, mistrusted: 0};
  const prefixes = Array.from({length: 96}, (_, at) => ({key: "k" + at, parent: at === 0 ? null : at >> 2, before: at === 0 ? 0 : 8, blocks: 8, block_size: 16, ends: 3, pairs: 9000 - at, holders: names.map((_, pod) => [pod, 8]).filter(([pod]) => pod % 2 === at % 2)}));
  return {endpoints, audit: names.map(name => ({name, score})), prefixes: {endpoints: names, prefixes}, decisions: {decisions: []}};
}

async function crowd(scheme) {
  const page = await open(scheme, many());
  await page.waitForFunction(() => document.querySelectorAll("#fleet button").length === 500 && document.querySelectorAll("#prefixes button").length === 96);
  const took = await page.evaluate(() => { const begun = performance.now(); for (let at = 0; at < 10; at += 1) draw(); return (performance.now() - begun) / 10; });
  assert.ok(took < 500, `a drawing of 500 pods takes ${took} ms`);
  const tall = await page.$eval("#fleet", one => one.offsetHeight);
  assert.ok(tall < 1200, `500 pods are ${tall} px high`);
  await page.focus("#fleet button");
  for (const key of ["ArrowRight", "ArrowDown", "End", "Enter"]) await page.keyboard.press(key);
  assert.equal(await page.$eval("#details h3", one => one.textContent), "vllm-qwen3-499", "arrows and Enter choose");
  assert.equal((await page.$$("#fleet button[tabindex='0']")).length, 1, "one stop for Tab");
  await page.type("#find", "qwen3-49");
  assert.equal((await page.$$("#fleet button")).length, 11);
  await accessible(page, "500 pods, " + scheme);
  assert.deepEqual(page.complaints, []);
  console.log(`ui: 500 pods and 96 prefixes are drawn in ${took.toFixed(1)} ms`);
  await page.close();
}

async function strange() {
  const all = many(), name = "<img src=x onerror=alert(1)>";
  all.endpoints = all.endpoints.slice(0, 2);
  all.endpoints[0].name = name;
  const page = await open("light", {...all, decisions: "these are for who is on this host", prefixes: {endpoints: [], prefixes: []}});
  await page.waitForFunction(() => document.querySelectorAll("#fleet button").length === 2);
  assert.deepEqual((await texts(page, "#fleet .name"))[0], name, "a name is text");
  assert.deepEqual(await texts(page, "#decisions-off"), ["these are for who is on this host"]);
  assert.equal((await page.$$("img")).length, 0);
  await page.close();
}

async function gone() {
  const page = await open("dark", {endpoints: null, audit: null, decisions: null, prefixes: null});
  assert.match(await page.$eval("#status.bad", one => one.textContent), /no answer since/);
  await page.close();
}

async function narrow() {
  const page = await open("light", many(), 390);
  const [wide, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= screen, `a phone of ${screen} px has to scroll to ${wide}`);
  await page.close();
}

try {
  for (const scheme of ["light", "dark"]) { await live(scheme); await crowd(scheme); }
  await strange();
  await gone();
  await narrow();
  console.log("ui: all is well");
} finally {
  await browser.close();
}
