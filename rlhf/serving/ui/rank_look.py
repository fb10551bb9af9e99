"""The texts, the style and the keys of the rank tab."""

# So that the keys work at once.
FOCUS = """
() => {
  const card = document.querySelector("#rank-answers .rank-card");
  if (card) card.focus({preventScroll: true});
}
"""
# The buttons are gone after the ranking: the next thing is the next prompt of the queue, or a new message.
NEXT = """
() => {
  const card = document.querySelector("#rank-answers .rank-card");
  if (card || !window.matchMedia("(pointer: fine)").matches) return;
  const queued = document.querySelector("#rank-status .rank-bar");
  const next = queued ? document.getElementById("rank-next") : document.querySelector("#rank-prompt textarea");
  if (next) next.focus({preventScroll: true});
}
"""
# A digit on a card sets its tier and goes to the next card. Arrows move between cards, Enter submits when all have a tier.
SCRIPT = """
() => {
  if (window.rlhfTiers) return;
  const cards = () => [...document.querySelectorAll("#rank-answers .rank-card")];
  const tierOf = (card) => {
    const chosen = card.querySelector("input:checked");
    return chosen ? Number(chosen.value) : null;
  };
  window.rlhfTiers = () => JSON.stringify(cards().map(tierOf));
  window.rlhfPromptFile = async () => {
    const input = document.getElementById("rank-file");
    const file = input && input.files[0];
    if (!file) return ["", ""];
    if (file.size > MAX_FILE) return ["x".repeat(MAX_FILE + 1), file.name];
    const content = await file.text();
    input.value = "";
    return [content, file.name];
  };
  const showOrder = () => {
    const line = document.querySelector("#rank-answers .rank-order");
    if (!line) return;
    const tiers = new Map();
    for (const card of cards()) {
      const tier = tierOf(card);
      card.classList.toggle("has-tier", tier !== null);
      if (tier !== null) tiers.set(tier, [...(tiers.get(tier) || []), card.dataset.letter]);
    }
    const order = [...tiers.keys()].sort().map((tier) => tiers.get(tier).join(" = "));
    if (order.length) line.textContent = order.join("  ›  ");
  };
  document.addEventListener("change", (event) => {
    if (event.target.closest && event.target.closest("#rank-answers")) showOrder();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const card = event.target.closest && event.target.closest("#rank-answers .rank-card");
    if (!card) return;
    const all = cards();
    const i = all.indexOf(card);
    const move = (step) => {
      const next = all[i + step];
      if (next) next.focus();
      event.preventDefault();
    };
    if (/^[1-9]$/.test(event.key)) {
      const radio = card.querySelector(`input[value="${event.key}"]`);
      if (!radio) return;
      radio.checked = true;
      showOrder();
      move(1);
    } else if (event.target === card && (event.key === "ArrowDown" || event.key === "ArrowRight")) {
      move(1);
    } else if (event.target === card && (event.key === "ArrowUp" || event.key === "ArrowLeft")) {
      move(-1);
    } else if (event.key === "Enter" && all.every((other) => tierOf(other) !== null)) {
      event.preventDefault();
      document.getElementById("rank-submit").click();
    }
  });
}
"""


TEXTS = {
    "rank.tab": ("Rank", "순위"),
    "rank.ask": ("Answers to this message", "이 메시지에 답하기"),
    "rank.next": ("Next from the queue", "대기열의 다음 질문"),
    "rank.count": ("Answers", "답변 수"),
    "rank.written": (
        "I would have said … (optional, counts as the best)",
        "나라면 이렇게 답했다 … (선택, 최고로 저장)",
    ),
    "rank.submit": ("Save the ranking", "순위 저장"),
    "rank.line": (
        "Write a message, or take the next one of the queue, and put the answers in order. A reward model learns from it: "
        "Runs, Start a run, Train on the feedback.",
        "메시지를 쓰거나 대기열의 다음 질문을 받아 답변의 순위를 정하세요. 보상 모델이 이것을 배웁니다: 학습 › 학습 시작 › "
        "피드백으로 학습.",
    ),
    "rank.saved": ("Saved. Rank the next one.", "저장했습니다. 다음 순위를 정해 보세요."),
    "rank.skip": ("Skip", "건너뛰기"),
    "rank.queue": ("Prompts for the queue", "대기열 질문"),
    "rank.add": ("Add the file, save the share", "파일 추가, 비율 저장"),
    "rank.overlap": ("Prompts that two people rank (%)", "두 사람이 평가할 질문 (%)"),
    "rank.overlap_info": ("Needed to measure agreement.", "일치도를 재는 데 필요합니다."),
    "rank.tier": ("Tier of answer {letter}", "답변 {letter}의 등급"),
    "rank.tier_of": ("Answer {letter}: tier {tier}", "답변 {letter}: 등급 {tier}"),
    "rank.tier_is": ("Tier {tier}", "등급 {tier}"),
    "rank.yours": ("Your own answer", "직접 쓴 답변"),
    "rank.no_order": ("No order yet.", "아직 순서가 없습니다."),
    "rank.writing": (
        "Writing answers: {done} of {total} …",
        "답변 작성 중: {total}개 중 {done}개 …",
    ),
    "rank.keys": (
        "Give each answer a tier: 1 is the best, equal tiers are ties. <span class='keys'>Keys: on an answer <kbd>1</kbd> "
        "to <kbd>9</kbd>, arrows move, <kbd>Enter</kbd> saves.</span>",
        "답변마다 등급을 정하세요. 1이 최고이고, 같은 등급은 동점입니다. <span class='keys'>키: 답변에서 "
        "<kbd>1</kbd>–<kbd>9</kbd>, 화살표로 이동, <kbd>Enter</kbd>로 저장.</span>",
    ),
    "rank.progress": (
        "Queue: {done} of {prompts} prompts done; {mine} by you, {skipped} skipped.",
        "대기열: 질문 {prompts}개 중 {done}개 완료, 내가 한 것 {mine}개, 건너뛴 것 {skipped}개.",
    ),
    "rank.no_queue": (
        "The queue is empty: add a file of prompts.",
        "대기열이 비어 있습니다. 질문 파일을 추가하세요.",
    ),
    "rank.rankings": (
        "Rankings: {rankings}. People with a name: {annotators}.",
        "순위 {rankings}개. 이름이 있는 평가자 {annotators}명.",
    ),
    "rank.agreement": (
        "Agreement (Krippendorff's alpha): {alpha}{interval}. {pairs} pairs of answers to {prompts} prompts, {same} equal.",
        "일치도(크리펜도르프 알파): {alpha}{interval}, 질문 {prompts}개의 답변 쌍 {pairs}개, 같은 판단 {same}.",
    ),
    "rank.no_agreement": (
        "Agreement: not yet, it needs prompts that two named people ranked.",
        "일치도: 이름이 있는 두 사람이 같은 질문을 평가해야 계산됩니다.",
    ),
}

CSS = """
@media (min-width: 900px) {.rank-cards:has(> :nth-child(4):last-child) {grid-template-columns: 1fr 1fr;}}
.gradio-container:not(:has(#rank-status .rank-bar)) #rank-next {display: none;}  /* no queue */
.rank-card .tiers {display: flex; flex-wrap: wrap; gap: 6px;}
.rank-card .tiers label {position: relative; display: inline-flex; cursor: pointer;}
.rank-card .tiers input {position: absolute; inset: 0; opacity: 0; margin: 0; width: 100%; height: 100%; cursor: pointer;}
.rank-card .tiers span {
  min-width: 34px; height: 34px; border-radius: 10px; display: inline-flex; align-items: center; justify-content: center;
  border: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; color: var(--body-text-color);
}
.rank-card .tiers input:checked + span {background: var(--primary-700); border-color: var(--primary-700); color: white;}
.rank-card .tiers input:focus-visible + span {outline: 2px solid var(--primary-500); outline-offset: 2px;}
.rank-order {font-size: 1.02rem; font-weight: 600; margin: 12px 2px 0; min-height: 1.6em; letter-spacing: 0.02em;}
.rank-bar {display: block; height: 6px; border-radius: 3px; background: var(--neutral-200); overflow: hidden;}
.dark .rank-bar {background: var(--neutral-700);}
.rank-bar span {display: block; height: 100%; background: var(--primary-500);}
.prompt-file input {max-width: 100%; font-size: 0.85rem; color: var(--body-text-color);}
.sr-only {position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);}
"""
