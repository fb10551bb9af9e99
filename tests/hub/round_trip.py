"""A run there and back: shared twice, read back from its commit, and compared. Its repository is removed at the end.

    HF_TOKEN=... python -m tests.hub.round_trip

Run as a program of its own, since huggingface_hub reads its settings when it is imported.
"""

import secrets
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from rlhf.hub.share import share_run
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.snapshots import forget_commits, model_folder
from rlhf.runs.record import RunRecord


def make_run(folder: Path) -> None:
    """A finished run with a tiny policy."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from rlhf.models.load import save
    from rlhf.models.scratch import new_policy

    inner = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "a": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")
    model = new_policy(tokenizer, model_type="gpt2", hidden_size=8, layers=1, heads=1, context=16)
    save(model, tokenizer, folder)
    record = RunRecord.begin("sft", config={"output_dir": str(folder)}, seed=0)
    record.status = "done"
    record.save(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary, "run")
        make_run(run)
        name = f"{HfApi().whoami()['name']}/rlhf-test-{secrets.token_hex(4)}"
        try:
            first = share_run(run, name, private=True)
            second = share_run(run, name, private=True)
            assert first.changed and not second.changed and first.commit == second.commit
            forget_commits()
            pulled = Path(model_folder(f"{name}@{first.commit}"))
            for file in ("model.safetensors", "tokenizer.json", "config.json"):
                assert (pulled / file).read_bytes() == (run / file).read_bytes(), file
            ModelCard.load(name).validate()
            ours = load_policy(str(run)).state_dict()
            theirs = load_policy(f"{name}@{first.commit}").state_dict()
            assert all(ours[key].equal(theirs[key]) for key in ours)
            assert load_tokenizer(name).get_vocab() == load_tokenizer(str(run)).get_vocab()
        finally:
            HfApi().delete_repo(name, missing_ok=True)
    print("the same came back")


if __name__ == "__main__":
    main()
