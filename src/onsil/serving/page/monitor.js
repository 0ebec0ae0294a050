// The page of use: abstention by day, drift beside its noise, what people said. It asks once.
// What people wrote is only ever set as text, never as markup.
"use strict";

const WORDS = {
  ko: {
    title: "사용 현황", summary: "사용 현황", back: "질문하러 가기", other: "English", otherLang: "en",
    abstention: "답을 찾지 못한 비율", drift: "질문의 변화", feedback: "받은 의견",
    abstentionSays: "날마다 문서에서 답을 찾지 못한 질문의 비율과 95% 구간입니다. 질문 내용은 저장하지 않고 셉니다.",
    driftSays: "처음에 받은 질문과 최근 질문을 비교합니다(모집단 안정성 지수). 우연히 나올 수 있는 값(20번에 1번)보다 클 때만 변화로 봅니다.",
    feedbackSays: "의견은 담당자가 확인하고 채택해야만 학습 자료가 됩니다: onsil feedback",
    none: "아직 없습니다.", day: "날짜", asked: "질문", unanswered: "못 찾음", share: "비율", interval: "95% 구간",
    off: "예측 기록이 꺼져 있어 질문의 변화를 볼 수 없습니다. --log-predictions로 켤 수 있습니다(개인정보는 가려서 저장합니다).",
    few: (n) => `질문이 ${n}건 이상 모이면 볼 수 있습니다.`,
    what: "무엇을", index: "지수", floor: "우연의 한계", result: "판단",
    words: "쓰는 낱말", concepts: "다루는 주제", changed: "달라짐", same: "우연과 구별되지 않음",
    unknown: "문서에 없는 낱말", before: "전에는", windows: (a, b) => `처음 ${a}건과 최근 ${b}건`,
    verdict: "의견", question: "질문", answer: "답", correct: "맞는 답", good: "좋아요", bad: "아니에요",
    counts: (good, bad) => `좋아요 ${good}건, 아니에요 ${bad}건`,
    failed: "현황을 불러오지 못했습니다. 터미널에서 `onsil serve`를 다시 실행해 주세요.",
    chart: "날마다 답을 찾지 못한 비율",
    date: (day) => `${day.split("-").map(Number).join(". ")}.`,
  },
  en: {
    title: "In use", summary: "In use", back: "Back to asking", other: "한국어", otherLang: "ko",
    abstention: "Questions the documents do not answer", drift: "Change of the questions", feedback: "What people said",
    abstentionSays: "By day, with a 95% interval. Counted without keeping a word of what was asked.",
    driftSays: "The first questions against the latest (population stability index). Called a change only above what chance reaches 1 time in 20.",
    feedbackSays: "It becomes a lesson only when the owner has looked at it and adopts it: onsil feedback",
    none: "Nothing yet.", day: "Day", asked: "Asked", unanswered: "Not found", share: "Share", interval: "95% interval",
    off: "The prediction log is off, so no change can be seen. --log-predictions turns it on (identifiers are masked).",
    few: (n) => `Can be seen from ${n} questions on.`,
    what: "Of what", index: "Index", floor: "Noise floor", result: "Verdict",
    words: "Words", concepts: "Subjects", changed: "changed", same: "not told from chance",
    unknown: "Words in no document", before: "before", windows: (a, b) => `the first ${a} and the latest ${b}`,
    verdict: "Opinion", question: "Question", answer: "Answer", correct: "Right answer", good: "Good", bad: "Wrong",
    counts: (good, bad) => `${good} good, ${bad} wrong`,
    failed: "Nothing could be loaded. Run `onsil serve` again in the terminal.",
    chart: "Share of questions the documents do not answer, by day",
    date: (day) => day,
  },
};
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
const made = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const drawn = (tag, attributes, text) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const percent = (share) => `${(100 * share).toFixed(1)}%`;
let language = (navigator.language || "ko").toLowerCase().startsWith("ko") ? "ko" : "en";
let found = null;
let failed = false;

function table(heads, rows) {
  const whole = made("table");
  const head = made("tr");
  head.append(...heads.map((text) => made("th", text)));
  const top = made("thead");
  top.append(head);
  const body = made("tbody");
  for (const row of rows) {
    const line = made("tr");
    line.append(...row.map((cell) => {
      if (typeof cell === "string") return made("td", cell);
      const td = made("td");
      td.append(cell);
      return td;
    }));
    body.append(line);
  }
  whole.append(top, body);
  return whole;
}

// Bars with whiskers; the table below says the same in numbers.
function chart(days, label) {
  const [width, height, left, bottom] = [640, 180, 44, 24];
  const most = Math.max(0.1, ...days.map((day) => day.share.high));
  const y = (share) => (height - bottom) * (1 - share / most) + 6;
  const step = (width - left) / Math.max(days.length, 7);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height + 8}`, role: "img", "aria-label": label });
  for (const share of [0, most / 2, most]) {
    svg.append(drawn("line", { x1: left, x2: width, y1: y(share), y2: y(share), class: "rule" }),
      drawn("text", { x: 0, y: y(share) + 4, class: "axis" }, percent(share)));
  }
  days.forEach((day, n) => {
    const x = left + n * step + step / 2;
    svg.append(
      drawn("rect", { x: x - step * 0.3, width: step * 0.6, y: y(day.share.value),
        height: Math.max(0, y(0) - y(day.share.value)), class: "bar" }),
      drawn("line", { x1: x, x2: x, y1: y(day.share.low), y2: y(day.share.high), class: "whisker" }));
    if (n % Math.ceil(days.length / 7) === 0)
      svg.append(drawn("text", { x, y: height, class: "axis", "text-anchor": "middle" }, day.day.slice(5)));
  });
  return svg;
}

function abstention(words) {
  if (!found.days.length) return [made("p", words.none)];
  const rows = found.days.map((day) => [words.date(day.day), String(day.asked), String(day.abstained),
    percent(day.share.value), `${percent(day.share.low)} – ${percent(day.share.high)}`]).reverse();
  const heads = [words.day, words.asked, words.unanswered, words.share, words.interval];
  const scroll = made("div", undefined, "scroll");
  const numbers = table(heads, rows);
  numbers.className = "numbers";
  scroll.append(chart(found.days, words.chart), numbers);
  return [scroll];
}

function drift(words) {
  if (!found.keeps_predictions) return [made("p", words.off)];
  const known = found.drift;
  if (!known) return [made("p", words.few(found.needed))];
  const rows = ["words", "concepts"].map((name) => {
    const state = found.drifted[name];
    return [words[name], known[name].psi.toFixed(3), known[name].floor.toFixed(3),
      made("span", state ? words.changed : words.same, state ? "state changed" : "state")];
  });
  const share = ({ value, low, high }) => `${percent(value)} (${percent(low)} – ${percent(high)})`;
  return [made("p", words.windows(known.reference, known.window), "quiet"),
    table([words.what, words.index, words.floor, words.result], rows),
    made("p", `${words.unknown}: ${share(known.unknown)}, ${words.before} ${share(known.unknown_before)}`)];
}

function feedback(words) {
  const { good = 0, bad = 0 } = found.feedback;
  if (!good && !bad) return [made("p", words.none)];
  const rows = found.recent.map((row) => [words[row.verdict], row.question, row.answer, row.correct]);
  return [made("p", words.counts(good, bad)),
    table([words.verdict, words.question, words.answer, words.correct], rows)];
}

function speak() {
  const words = WORDS[language];
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = words[node.dataset.say];
  at("language").textContent = words.other;
  at("language").lang = words.otherLang;
  document.title = found ? `${found.name} · ${words.title}` : words.title;
  if (failed) at("abstention").replaceChildren(made("p", words.failed));
  if (!found) return;
  at("name").textContent = found.name;
  at("abstention").replaceChildren(...abstention(words));
  at("drift").replaceChildren(...drift(words));
  at("feedback").replaceChildren(...feedback(words));
}

at("language").addEventListener("click", () => {
  language = language === "ko" ? "en" : "ko";
  speak();
});
speak();
fetch("monitor/data").then((response) => (response.ok ? response.json() : Promise.reject(response)))
  .then((told) => { found = told; }, () => { failed = true; }).then(speak);
