"""The demonstrations that set the centre of the scores."""

from types import SimpleNamespace

from rlhf.reward_model.centre import encode_demonstrations, read_demonstrations


def test_bad_demonstrations_are_dropped_only_where_it_is_asked_for(write, refused):
    rows = [{"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "b"}]
    path = write("sft.jsonl", rows)
    inputs = SimpleNamespace(encode=lambda prompt, answers: [SimpleNamespace(ids=answers)])
    kept = read_demonstrations(path, skip_bad=True)
    fitting, too_long = encode_demonstrations(kept, inputs, max_length=9)
    assert [one.ids for one in fitting] == [["b"]]
    assert too_long == 0
    message = refused(read_demonstrations, path, skip_bad=False)
    assert "sft.jsonl:1: completion: empty" in message
