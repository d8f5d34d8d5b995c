"use strict";
// Compares any two of the variants that a section lists, word by word. Reads and writes text only.

const MAX_WORDS = 600;

function wordsOf(element) {
  const text = [...element.querySelectorAll(".verbatim")].map((span) => span.textContent).join("");
  return text.match(/\s*\S+|\s+$/g) || [];
}

function numEqual(left, right) {
  let count = 0;
  while (count < left.length && count < right.length && left[count] === right[count]) count++;
  return count;
}

// Which words of both are shared, in order: a longest common subsequence.
function sharedWords(left, right) {
  const rows = Math.min(left.length, MAX_WORDS), columns = Math.min(right.length, MAX_WORDS);
  const width = columns + 1, longest = new Uint16Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      longest[i * width + j] = left[i] === right[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  const ours = new Set(), theirs = new Set();
  for (let i = 0, j = 0; i < rows && j < columns; ) {
    if (left[i] === right[j]) { ours.add(i++); theirs.add(j++); }
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return [ours, theirs];
}

function show(paragraph, words, isShared) {
  paragraph.replaceChildren();
  let span = null, before = null;
  words.forEach((word, index) => {
    const shared = isShared(index);
    if (shared !== before) {
      span = paragraph.appendChild(document.createElement("bdi"));
      span.className = shared ? "verbatim" : "verbatim only";
      before = shared;
    }
    span.textContent += word;
  });
}

function compare(left, right, paragraphs) {
  const ours = wordsOf(left), theirs = wordsOf(right);
  const start = numEqual(ours, theirs);
  const rest = [ours.slice(start), theirs.slice(start)];
  const end = numEqual(rest[0].slice().reverse(), rest[1].slice().reverse());
  const shared = sharedWords(...rest.map((words) => words.slice(0, words.length - end)));
  [ours, theirs].forEach((words, side) =>
    show(paragraphs[side], words, (index) =>
      index < start || index >= words.length - end || shared[side].has(index - start)));
}

for (const box of document.querySelectorAll(".compare")) {
  const variants = [...box.parentElement.querySelectorAll("[data-variant]")];
  const selects = [...box.querySelectorAll("select")];
  const paragraphs = [...box.querySelectorAll("p")];
  const update = () => compare(...selects.map((select) => variants[select.selectedIndex]), paragraphs);
  selects.forEach((select, side) => {
    for (const variant of variants) select.add(new Option(variant.dataset.variant));
    select.selectedIndex = Math.min(side, variants.length - 1);
    select.addEventListener("change", update);
  });
  box.hidden = false;
  update();
}
