"""Korean for the messages of lower layers, which write English: refusals of the engine, the queue, the runs and the data.

Each row is (English, Korean). {a}, {b} ... stand for the parts that differ, and are the same text in both languages.
"""

import re
from functools import cache

TABLE = (
    # ---- questions and answers ----
    ("write a message first", "먼저 메시지를 입력하세요"),
    (
        "{a} models: choose {b} to {c} different models",
        "모델 {a}개를 골랐습니다. 서로 다른 모델을 {b}~{c}개 고르세요",
    ),
    ("{a} models: choose one model", "모델 {a}개를 골랐습니다. 하나만 고르세요"),
    ("no model {a}: choose from {b}", "{a} 모델이 없습니다. 다음에서 고르세요: {b}"),
    (
        "no model is here yet: train one, or start the server with one",
        "아직 모델이 없습니다. 하나를 학습하거나, 모델을 지정해 서버를 시작하세요",
    ),
    (
        "no reward model is here yet: train one, or start the server with one",
        "아직 보상 모델이 없습니다. 하나를 학습하거나, 모델을 지정해 서버를 시작하세요",
    ),
    ("no model {a}: choose one of {b}", "{a} 모델이 없습니다. 다음에서 고르세요: {b}"),
    ("no reward model {a}: choose one of {b}", "{a} 보상 모델이 없습니다. 다음에서 고르세요: {b}"),
    ("no reward model {a}", "{a} 보상 모델이 없습니다"),
    (
        "seed={a}: give a whole number, or nothing for a new one",
        "시드 {a}: 정수를 넣거나, 매번 새로 뽑으려면 비워 두세요",
    ),
    ("{a}={b}: give a whole number from {c} to {d}", "{a}={b}: {c}부터 {d}까지의 정수를 넣으세요"),
    ("{a}={b}: give a number from {c} to {d}", "{a}={b}: {c}부터 {d}까지의 수를 넣으세요"),
    ("max_new_tokens={a}: at most {b} are allowed", "최대 토큰 {a}: {b}까지 가능합니다"),
    (
        "{a} characters: the limit is {b}; shorten the conversation",
        "{a}자입니다. {b}자까지 가능하니 대화를 줄여 주세요",
    ),
    (
        "{a} messages: the limit is {b}; start a new conversation",
        "메시지가 {a}개입니다. {b}개까지 가능하니 새 대화를 시작하세요",
    ),
    (
        "your message has {a} tokens ({b} characters); this model reads {c} and keeps {d} of them for its answer: "
        "shorten to {e} tokens (about {f} characters like these)",
        "메시지가 {a}토큰({b}자)입니다. 이 모델은 {c}토큰까지 읽고 그중 {d}토큰을 답변에 남겨 둡니다. "
        "{e}토큰(이런 글자로 약 {f}자)까지 줄여 주세요",
    ),
    (
        "your message has {a} tokens ({b} characters); this model reads {c} and keeps {d} of them for its answer: "
        "shorten to {e} tokens (about {f} characters like these). It knows English letters only: any other character "
        "costs it several tokens",
        "메시지가 {a}토큰({b}자)입니다. 이 모델은 {c}토큰까지 읽고 그중 {d}토큰을 답변에 남겨 둡니다. "
        "{e}토큰(이런 글자로 약 {f}자)까지 줄여 주세요. 영어 글자만 아는 모델이라 다른 글자는 하나에 여러 토큰이 듭니다",
    ),
    (
        "{a} requests are running or in line, the most that are taken: ask again in {b} s",
        "요청 {a}개가 실행 중이거나 대기 중이라 더 받을 수 없습니다. {b}초 뒤에 다시 시도하세요",
    ),
    (
        "you have {a} requests running or in line, the most for one client: wait for one of them, or cancel it",
        "요청 {a}개가 실행 중이거나 대기 중입니다. 하나가 끝나기를 기다리거나 취소하세요",
    ),
    (
        "the request waited for {a} s and did not begin: ask again in {b} s",
        "{a}초를 기다렸지만 시작하지 못했습니다. {b}초 뒤에 다시 시도하세요",
    ),
    (
        "the service is closing: ask again when it is back",
        "서버가 종료되는 중입니다. 다시 켜지면 시도하세요",
    ),
    ("stopped: ask again", "멈췄습니다. 다시 질문하세요"),
    (
        "an answer failed: ask again, and see the server's log for the reason",
        "답변 중 오류가 났습니다. 다시 질문하세요. 이유는 서버 로그에 있습니다",
    ),
    (
        "a model gave an empty answer: ask again, or change the settings",
        "빈 답변이 나왔습니다. 다시 질문하거나 설정을 바꾸세요",
    ),
    # ---- judgements ----
    (
        "there is no such question, or it was asked too long ago: ask again",
        "그런 질문이 없거나 너무 오래되었습니다. 다시 질문하세요",
    ),
    ("this was decided already: ask the next question", "이미 판단했습니다. 다음 질문을 하세요"),
    (
        "annotator: a name of at most 100 characters is expected",
        "이름은 100자까지 쓸 수 있습니다",
    ),
    ("count={a}: ask for {b} to {c} answers", "답변 수 {a}: {b}개부터 {c}개까지 가능합니다"),
    (
        "count={a}: at temperature 0 each model has one answer: raise temperature, or ask for {b}",
        "답변 수 {a}: 온도가 0이면 모델마다 답변이 하나입니다. 온도를 올리거나 {b}개로 줄이세요",
    ),
    (
        "{a} answers, and {b} different ones: raise the temperature, or take another model",
        "답변 {a}개 중 서로 다른 것은 {b}개뿐입니다. 온도를 올리거나 다른 모델을 고르세요",
    ),
    (
        "the queue is for people with a name, so that nobody gets a prompt twice: enter yours",
        "대기열을 쓰려면 이름이 필요합니다. 같은 질문이 두 번 나오지 않도록 이름을 입력하세요",
    ),
    (
        "no prompt of the queue is left for you: add a file of prompts, or wait for those that others have open",
        "남은 질문이 없습니다. 질문 파일을 추가하거나, 다른 사람이 하던 질문이 끝나기를 기다리세요",
    ),
    (
        "a tier from 1 (the best) is needed for each answer: {a} whole numbers, {b} given",
        "모든 답변에 등급을 정하세요. 1이 최고입니다",
    ),
    (
        "written: the same text as answer {a}: put that one into tier 1 alone",
        "{a}번 답변과 같은 글입니다. 그 답변만 1등급에 두세요",
    ),
    ("written: {a} characters, at most {b} are allowed", "{a}자입니다. {b}자까지 쓸 수 있습니다"),
    (
        "{a}: give a .txt file with one prompt per line, or a .jsonl file",
        "{a}: 한 줄에 질문 하나인 .txt 파일이나 .jsonl 파일을 고르세요",
    ),
    ("{a}: no prompts: give at least one", "{a}: 질문이 없습니다. 하나 이상 넣으세요"),
    ("{a}: byte {b} is not UTF-8: save the file as UTF-8", "{a}: UTF-8로 저장해 주세요 ({b}번째 바이트)"),
    (
        "{a}: {b} bytes: a file of prompts has at most {c}: split it",
        "{a}: {b}바이트입니다. {c}바이트까지 가능하니 파일을 나누세요",
    ),
    # ---- runs ----
    (
        "there is no feedback yet: rank or compare some answers first",
        "아직 피드백이 없습니다. 먼저 답변을 평가하세요",
    ),
    (
        "dataset_name is not set: give a file, a folder of .jsonl files, or a Hub id",
        "dataset_name이 비어 있습니다. 파일, .jsonl 파일 폴더, 또는 Hub id를 넣으세요",
    ),
    (
        "name {a}: {b} is there already, choose another name",
        "이름 {a}: {b}이(가) 이미 있습니다. 다른 이름을 고르세요",
    ),
    (
        "name {a}: a job with this name is in line or runs",
        "이름 {a}: 같은 이름의 학습이 대기 중이거나 실행 중입니다",
    ),
    (
        "name {a}: give a name such as my-run or demo/my-run, with at most {b} slashes",
        "이름 {a}: my-run 또는 demo/my-run처럼 쓰세요. /는 {b}개까지 가능합니다",
    ),
    (
        "name {a}: use letters, digits, _, - and . (first a letter or digit), and {b} characters at most",
        "이름 {a}: 글자, 숫자, _, -, .만 쓸 수 있고(첫 글자는 글자나 숫자) {b}자까지 가능합니다",
    ),
    ("name {a}: {b} has another meaning in a folder of runs", "이름 {a}: {b}은(는) 쓸 수 없는 이름입니다"),
    (
        "repo={a}: give a name such as ann/my-model, of letters, digits, -, _ and ., at most {b} characters",
        "저장소 {a}: ann/my-model처럼 영문자, 숫자, -, _, .으로 된 이름을 {b}자 이내로 넣으세요",
    ),
    (
        "repo={a}: is not open here: repositories may be {b}",
        "저장소 {a}: 이 서버에서는 다음 저장소에만 올릴 수 있습니다: {b}",
    ),
    ("sources: choose a run to share", "공유할 학습을 고르세요"),
    ("{a} is a push: share it again in the tab Share", "{a}: 공유 탭에서 다시 올리세요"),
    ("{a} events without consent were left behind", "공개 동의가 없는 평가 {a}개는 제외했습니다"),
    (
        '{a}: none of its {b} events may be published. People agree in the app, with the box "My feedback may be published" '
        "in Rank, Compare or the settings of Chat",
        "{a}: 평가 {b}개 중 공개에 동의한 것이 없습니다. 순위, 비교, 채팅 설정의 '내 피드백을 공개해도 됩니다'를 선택하세요",
    ),
    ("{a} jobs are in line: wait until some are done", "{a}개가 대기 중입니다. 몇 개가 끝날 때까지 기다리세요"),
    ("no run {a} in {b}", "{b}에 {a} 학습이 없습니다"),
    ("{a} is done", "{a}: 이미 끝났습니다"),
    ("{a} has not ended", "{a}: 아직 끝나지 않았습니다"),
    # ---- data ----
    ("file: choose a file, or type its path", "파일을 고르거나 경로를 입력하세요"),
    (
        "{a} files are being read: wait until one is done",
        "파일 {a}개를 읽는 중입니다. 하나가 끝날 때까지 기다리세요",
    ),
    ("the feedback has no {a} yet", "아직 내려받을 내용이 없습니다"),
    ("{a}={b} is not open here: files may be in {c}", "{a}={b}: 여기서는 열 수 없습니다. 파일은 {c}에 있어야 합니다"),
    # what a recipe learns
    (
        "reward and dpo: which of two answers is better, for each pair with different ranks; ilql: the score of each answer",
        "reward와 dpo: 순위가 다른 두 답변 중 어느 것이 나은지. ilql: 답변마다의 점수",
    ),
    ("reward, dpo and ilql: that chosen is better than rejected", "reward, dpo, ilql: chosen이 rejected보다 낫다는 것"),
    (
        "ilql: which answers score more; sft: every completion, whatever its score",
        "ilql: 어떤 답변의 점수가 더 높은지. sft: 점수와 상관없이 모든 답변(completion)",
    ),
    ("sft: the completion; the prompt is only read", "sft: 답변(completion). 프롬프트는 읽기만 합니다"),
    (
        "sft: the assistant's turns; the others are only read",
        "sft: 어시스턴트의 말. 나머지는 읽기만 합니다",
    ),
    (
        "ppo: the policy's own answers to the prompt; no answer of the file is learned",
        "ppo: 프롬프트에 대한 모델 자신의 답변. 파일의 답변은 학습하지 않습니다",
    ),
    (
        "pretrain and sft: the whole text; tokenizer: its words",
        "pretrain과 sft: 전체 텍스트. tokenizer: 그 단어",
    ),
    # ---- encoder tasks ----
    ("the {a} is empty: write something to read", "{a}: 비어 있습니다. 읽을 글을 입력하세요"),
)  # fmt: skip


@cache
def _patterns() -> tuple[tuple[re.Pattern, str], ...]:
    """(what matches the English message, Korean). The longest come first, as another may begin like them."""
    patterns = []
    for english, korean in sorted(TABLE, key=lambda row: -len(row[0])):
        escaped = re.escape(english)
        # {a} is \{a\} now
        pattern = re.sub(r"\\{(\w)\\}", r"(?P<\1>.+?)", escaped)
        patterns.append((re.compile(pattern, re.DOTALL), korean))
    return tuple(patterns)


def in_korean(message: str) -> str:
    """The message in Korean; as it is where the table does not have it."""
    for pattern, korean in _patterns():
        match = pattern.fullmatch(message)
        if match:
            return korean.format(**match.groupdict())
    return message
