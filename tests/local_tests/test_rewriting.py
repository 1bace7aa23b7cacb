"""Container paths as folders of this machine."""

import sys
from pathlib import Path

import pytest

from peftjob.local.container import command
from peftjob.local.environment import expand
from peftjob.local.volumes import Mount, rewrite

MOUNTS = [Mount("/workspace", Path("/v/in"), True), Mount("/tmp", Path("/v/tmp"), False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/workspace", "/v/in"),
        ("/workspace/model", "/v/in/model"),
        ("--dir=/workspace/model", "--dir=/v/in/model"),
        ("ls '/workspace'; cd /workspace;", "ls '/v/in'; cd /v/in;"),
        ("a:/workspace/bin", "a:/v/in/bin"),
        ("/tmp", "/v/tmp"),
        ("/workspaces", "/workspaces"),
        ("/workspace-2/x", "/workspace-2/x"),
        ("/data/workspace", "/data/workspace"),
        ("file:///workspace/x", "file:///workspace/x"),
        ("hf://org/tmp", "hf://org/tmp"),
    ],
)
def test_whole_paths_are_rewritten_and_nothing_else(text: str, expected: str) -> None:
    assert rewrite(text, MOUNTS) == expected


def test_an_entry_point_is_not_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/tmp/venv/bin/python")
    container = {"image": "ghcr.io/peftjob/trainer:1", "args": ["--model_dir", "/tmp/model"]}
    argv = command(container, MOUNTS)
    assert argv == ["/tmp/venv/bin/python", "-m", "llm_trainer", "--model_dir", "/v/tmp/model"]


def test_references_expand_as_the_kubelet_does_it() -> None:
    variables = {"A": "1"}
    assert expand("$(A)-$(B)-$$(A)", variables) == "1-$(B)-$(A)"
