"""Files, refusals and a Hub data set for the tests of rlhf/data."""

import gzip
import json

import pytest

from rlhf.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        data = content.encode() if isinstance(content, str) else content
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


@pytest.fixture
def refused():
    """The message of the UserError that a call raises."""

    def refused(call, *args, **kwargs):
        with pytest.raises(UserError) as caught:
            call(*args, **kwargs)
        return str(caught.value)

    return refused


@pytest.fixture
def hub(monkeypatch):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    splits = {
        "train": datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features),
        "test": datasets.Dataset.from_dict({"text": ["c"], "label": [-1]}, features=features),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None: splits)
