"""JSON lines while others write them, and where process 0 cannot read them."""

import jax
import pytest

from zerosearch_jax import settings, sharding
from zerosearch_jax.run import jsonl


def test_a_line_that_its_writer_ends_while_it_is_read_is_left_out(tmp_path, monkeypatch):
    path, parse = tmp_path / 'metrics.jsonl', settings.parse_json
    path.write_text('{"step": 1}\n{"st')

    def late(line):
        if not line.endswith(b'\n'):
            with open(path, 'a') as file:
                file.write('ep": 2}\n')
        return parse(line)

    monkeypatch.setattr(settings, 'parse_json', late)
    assert jsonl.read_jsonl(path) == [{'step': 1}]
    assert jsonl.read_jsonl(path) == [{'step': 1}, {'step': 2}]


def test_a_file_that_process_0_cannot_read_is_told_to_all(tmp_path, monkeypatch):
    path, sent = tmp_path / 'rows.jsonl', []
    path.write_text('no\n{}\n')
    monkeypatch.setattr(sharding, 'from_first_process', lambda value: sent.append(value) or value)
    with pytest.raises(ValueError, match=r'rows.jsonl:1: not a JSON object'):
        jsonl.shared_jsonl(path)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    monkeypatch.setattr(sharding, 'from_first_process', lambda _: sent[0])
    with pytest.raises(OSError, match=r'process 0: .*rows.jsonl:1: not a JSON object'):
        jsonl.shared_jsonl(path)
