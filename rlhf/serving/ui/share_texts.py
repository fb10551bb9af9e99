"""The texts of the Share tab, in English and Korean."""

TEXTS = {
    "share.line": (
        "Share a model, the feedback, or a Space with the chat on the Hugging Face Hub. Look at it before you push.",
        "모델, 피드백, 채팅 Space를 Hugging Face Hub에 공유합니다. 올리기 전에 내용을 확인하세요.",
    ),
    "share.kind": ("What to share", "공유 대상"),
    "share.kind.run": ("A run", "학습 결과"),
    "share.kind.feedback": ("The feedback, as a data set", "피드백 (데이터셋)"),
    "share.kind.space": ("A Space with the chat", "채팅 Space"),
    "share.run": ("Run", "학습"),
    "share.models": ("Models of the Space, the first is the default", "Space의 모델 (첫 번째가 기본값)"),
    "share.repo": ("Repository", "저장소"),
    "share.repo.help": ("owner/name, as on the Hub", "Hub의 owner/name 형식"),
    "share.private": ("Private", "비공개"),
    "share.private.help": ("Of a new repository", "새 저장소일 때"),
    "share.merge": ("Merge the LoRA adapter", "LoRA 어댑터 병합"),
    "share.merge.help": ("Into a whole model, which needs no base", "기본 모델 없이 쓸 수 있게 합칩니다"),
    "share.pr": ("As a pull request", "풀 리퀘스트로"),
    "share.pr.help": ("To a repository that exists", "이미 있는 저장소에 제안합니다"),
    "share.preview": ("Preview", "미리 보기"),
    "share.push": ("Push to the Hub", "Hub에 올리기"),
    "share.pushing": ("In line: {name}", "대기열에 넣었습니다: {name}"),
    "share.files": ("Files ({count}, {size})", "파일 ({count}개, {size})"),
    "share.code": ("the code, {count} files", "코드, 파일 {count}개"),
    "share.metadata": ("Metadata", "메타데이터"),
    "share.card": ("Card", "카드"),
    "share.notes": ("Before you push", "올리기 전에"),
    "share.command": ("The command that will run", "실행할 명령"),
    "share.merged": (
        "The adapter is merged as it is pushed: then the files are those of the whole model.",
        "올릴 때 어댑터를 병합하므로, 실제 파일은 전체 모델의 파일입니다.",
    ),
    "share.token": (
        "The server's own token is used, of hf auth login or HF_TOKEN there. This page never has it.",
        "서버의 토큰(hf auth login 또는 HF_TOKEN)을 씁니다. 이 페이지에는 전달되지 않습니다.",
    ),
    "share.pushes": ("Pushes", "올리기 기록"),
    "share.none": ("Nothing was pushed from here yet.", "아직 올린 것이 없습니다."),
    "share.no_runs": (
        "There is no finished run to share yet.",
        "공유할 완료된 학습이 아직 없습니다.",
    ),
    "share.error.kind": (
        "This server has no such thing to share.",
        "이 서버에는 공유할 대상이 없습니다.",
    ),
    "share.error.stale": (
        "This is not what the preview shows. The form or the run has changed since: preview it again, then push.",
        "미리 보기와 다릅니다. 그 뒤에 설정이나 학습 결과가 바뀌었습니다. 다시 미리 본 뒤에 올리세요.",
    ),
    "share.error.closed": (
        "Sharing is off on this server: its owner starts it with --allow-push OWNER.",
        "이 서버에서는 공유가 꺼져 있습니다. 관리자가 --allow-push OWNER로 시작해야 합니다.",
    ),
}  # fmt: skip
