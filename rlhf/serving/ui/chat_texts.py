"""The texts of the chat tab: key -> (English, Korean)."""

TEXTS = {
    "chat.tab": ("Chat", "채팅"),
    "chat.log": ("Conversation", "대화"),
    "chat.you": ("You", "나"),
    "chat.welcome": ("What is on your mind?", "무슨 이야기를 나눠 볼까요?"),
    "chat.welcome.hint": (
        "Pick a line or write your own.",
        "아래에서 고르거나 직접 써 보세요.",
    ),
    "chat.untitled": ("New conversation", "새 대화"),
    "chat.message": ("Message", "메시지"),
    "chat.message.hint": ("Write a message", "메시지를 입력하세요"),
    "chat.send": ("Send", "보내기"),
    "chat.stop": ("Stop", "멈추기"),
    "chat.conversations": ("Conversations", "대화 목록"),
    "chat.settings": ("Settings", "설정"),
    # panel
    "chat.model": ("Model", "모델"),
    "chat.system": ("System prompt", "시스템 프롬프트"),
    "chat.system.hint": ("Who the model should be", "모델의 역할"),
    "chat.system.none": (
        "This model was trained without system prompts",
        "시스템 프롬프트 없이 학습된 모델입니다",
    ),
    "chat.temperature": ("Temperature", "온도"),
    "chat.top_p": ("Top-p", "Top-p"),
    "chat.top_k": ("Top-k (0: off)", "Top-k (0: 끔)"),
    "chat.max_tokens": ("Max tokens", "최대 토큰 수"),
    "chat.penalty": ("Repetition penalty (1: off)", "반복 페널티 (1: 끔)"),
    "chat.seed": ("Seed", "시드"),
    "chat.seed.hint": ("A new one each time", "매번 새로 뽑기"),
    "chat.more": ("More", "더 보기"),
    "chat.reward_model": ("Reward model", "보상 모델"),
    "chat.reward_model.hint": ("Scores each answer", "답변마다 점수를 매깁니다"),
    "chat.best_of": ("Best of", "여러 답변 중 최선"),
    "chat.best_of.hint": (
        "Sample several answers and show the best scored one first",
        "여러 답변을 만들어 점수가 가장 높은 것을 먼저 보여 줍니다",
    ),
    # under a message
    "chat.copy": ("Copy", "복사"),
    "chat.edit": ("Edit", "수정"),
    "chat.retry": ("Retry", "다시 답하기"),
    "chat.continue": ("Continue", "이어 쓰기"),
    "chat.up": ("Good answer", "좋은 답변"),
    "chat.down": ("Bad answer", "나쁜 답변"),
    "chat.earlier": ("Earlier version", "이전 버전"),
    "chat.later": ("Later version", "다음 버전"),
    "chat.unanswered": ("There is no answer yet.", "아직 답변이 없습니다."),
    "chat.answer_it": ("Answer it", "답변 받기"),
    "chat.empty_answer": ("The model ended its answer at once.", "모델이 바로 답변을 끝냈습니다."),
    "chat.token": ("{count} token", "{count}토큰"),
    "chat.tokens": ("{count} tokens", "{count}토큰"),
    "chat.speed_is": ("{speed} tokens/s", "초당 {speed}토큰"),
    "chat.seed_is": ("seed {seed}", "시드 {seed}"),
    "chat.score_is": ("score {score}", "점수 {score}"),
    "chat.finish.length": ("reached its length limit", "길이 제한에 도달"),
    "chat.finish.cancelled": ("stopped", "멈춤"),
    "chat.finish.failed": ("broke off", "중단됨"),
    "chat.not_read": ("Oldest messages not read", "읽지 않은 이전 메시지"),
    # waiting
    "chat.loading": ("Loading the model…", "모델을 불러오는 중…"),
    "chat.ahead.one": ("One request ahead in line", "앞에 요청 1개가 있습니다"),
    "chat.ahead": ("{count} requests ahead in line", "앞에 요청 {count}개가 있습니다"),
    "chat.sampling": ("Sampling {count} answers…", "답변 {count}개를 만드는 중…"),
    # limits of a model
    "chat.fact.context": (
        "Reads up to {tokens} tokens",
        "{tokens}토큰까지 읽음",
    ),
    "chat.fact.single": (
        "answers each question on its own",
        "질문마다 따로 답함",
    ),
    "chat.fact.turns": ("remembers {count} questions", "질문 {count}개까지 기억"),
    "chat.fact.no_system": ("takes no system prompt", "시스템 프롬프트 없음"),
    "chat.fact.characters": ("knows {characters} text only", "{characters} 문자만 앎"),
    # notices
    "chat.crashed": (
        "The model failed while answering. The server's log says why.",
        "답변 중 모델에 오류가 났습니다. 이유는 서버 로그에 있습니다.",
    ),
    "chat.stopped_early": (
        "Stopped before the first word.",
        "첫 단어가 나오기 전에 멈췄습니다.",
    ),
    "chat.no_score": ("No score: {problem}", "점수 없음: {problem}"),
    "chat.thanks": ("Noted. Thank you.", "의견을 남겼습니다. 고맙습니다."),
    "chat.error.seed": (
        "The seed is a whole number, such as 42, or empty for a new one each time.",
        "시드는 42와 같은 정수입니다. 비워 두면 매번 새로 뽑습니다.",
    ),
    "chat.error.best_of": (
        "best_of is a whole number from 1.",
        "best_of는 1 이상의 정수입니다.",
    ),
    "chat.error.best_of_needs": (
        "Choose a reward model: it picks the best of several answers.",
        "여러 답변 중 최선을 고를 보상 모델을 선택하세요.",
    ),
    "chat.error.empty": ("Write a message first.", "먼저 메시지를 입력하세요."),
    "chat.error.long": (
        "{count} characters: the limit is {limit}. Shorten the message.",
        "{count}자입니다. {limit}자까지 보낼 수 있으니 줄여 주세요.",
    ),
    "chat.error.history": (
        "The history is a list of messages with a role (user or assistant) and a content. "
        "The system prompt has its own parameter, system_prompt.",
        "history는 role(user 또는 assistant)과 content가 있는 메시지 목록입니다. "
        "시스템 프롬프트는 system_prompt로 보내세요.",
    ),
    "chat.error.text_only": (
        "A message is text, or a list of parts with text: files are not read.",
        "메시지는 텍스트여야 합니다. 파일은 읽지 않습니다.",
    ),
    "chat.error.no_question": (
        "There is no question to answer: write a message first.",
        "답할 질문이 없습니다. 먼저 메시지를 입력하세요.",
    ),
    "chat.error.no_message": (
        "There is no message {number} of that kind.",
        "해당하는 메시지 {number}이(가) 없습니다.",
    ),
    "chat.error.not_conversation": (
        "This is not a conversation that was exported here: choose a .json file of an export.",
        "여기서 내보낸 대화가 아닙니다. 내보낸 .json 파일을 선택하세요.",
    ),
    "chat.error.message": (
        "Message {number} of the conversation cannot be read: questions and answers alternate and are text.",
        "대화의 메시지 {number}을(를) 읽을 수 없습니다. 질문과 답변이 번갈아 오는 텍스트여야 합니다.",
    ),
    "chat.error.too_long": (
        "The conversation is too long: at most {nodes} messages and {characters} characters.",
        "대화가 너무 깁니다. 메시지 {nodes}개, {characters}자까지 가능합니다.",
    ),
    "chat.error.form": ("form is json or markdown.", "form은 json 또는 markdown입니다."),
    "chat.error.rating": ("A rating is up or down.", "평가는 up 또는 down입니다."),
    "chat.error.rated_model": (
        "The model {model} is not served here: only answers of served models are rated.",
        "{model} 모델은 이 서버에 없습니다. 서버에 있는 모델의 답변만 평가할 수 있습니다.",
    ),
    "chat.error.no_feedback": (
        "This server does not collect feedback.",
        "이 서버는 의견을 수집하지 않습니다.",
    ),
}

# Texts that chat.js writes: name -> (English, Korean)
SCRIPT_TEXTS = {
    "newChat": ("New chat", "새 대화"),
    "untitled": ("New conversation", "새 대화"),
    "list": ("Conversations", "대화 목록"),
    "rename": ("Rename", "이름 바꾸기"),
    "remove": ("Delete", "삭제"),
    "removed": ("Conversation deleted.", "대화를 삭제했습니다."),
    "undo": ("Undo", "되돌리기"),
    "saveJson": ("Export as JSON", "JSON으로 내보내기"),
    "saveMarkdown": ("Export as Markdown", "마크다운으로 내보내기"),
    "import": ("Import", "가져오기"),
    "tooBig": ("The file is larger than 2 MB.", "파일이 2MB보다 큽니다."),
    "full": (
        "The browser has no more room for conversations: export or delete some.",
        "브라우저 저장 공간이 가득 찼습니다. 대화를 내보내거나 삭제하세요.",
    ),
    "empty": ("Conversations are kept in this browser.", "대화는 이 브라우저에만 저장됩니다."),
    "save": ("Save", "저장"),
    "sendAgain": ("Send", "보내기"),
    "cancel": ("Cancel", "취소"),
    "copied": ("Copied", "복사했습니다"),
    "copyCode": ("Copy code", "코드 복사"),
    "why": ("Why? (optional)", "이유 (선택)"),
    "rate": ("Rate", "평가 남기기"),
    "newest": ("Jump to newest", "최신 메시지로"),
    "close": ("Close", "닫기"),
    "edited": ("Edit your message", "메시지 수정"),
    "offline": (
        "The server does not answer. Your text is kept; trying again…",
        "서버가 응답하지 않습니다. 입력한 내용은 남아 있으며 다시 연결하는 중입니다…",
    ),
    "back": ("The server is back.", "서버에 다시 연결되었습니다."),
}


def script_texts(index: int) -> dict[str, str]:
    """The texts of chat.js in one language. index: of the language in texts.LANGUAGES."""
    return {name: texts[index] for name, texts in SCRIPT_TEXTS.items()}
