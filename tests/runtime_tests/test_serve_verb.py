"""peftjob serve without a job: an InferenceService in a file, and adapters on the command line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import AuthenticationError, OpenAI

from peftjob.cli import main
from peftjob.service import default_model
from tests.local_tests.conftest import Cluster

KEY = "user-0123456789"
SECRET = {
    "kind": "Secret",
    "metadata": {"name": "clients"},
    "stringData": {"keys": f"{KEY}\n", "admins": "admin-0123456789\n"},
}


@dataclass
class Shell:
    """The command peftjob on a local cluster."""

    home: Path
    out: pytest.CaptureFixture[str]

    def run(self, *args: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        with pytest.raises(SystemExit) as end:
            main([*args, "--home", str(self.home)])
        return (int(end.value.code or 0), *self.out.readouterr())


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    cluster = Cluster(tmp_path / "cluster")
    yield Shell(cluster.local.root, capsys)
    cluster.close()


def answer(world: Any, url: str, model: str, *, key: str) -> str:
    client = OpenAI(base_url=url, api_key=key, max_retries=0)
    told = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "why"}], temperature=0, max_tokens=8
    )
    return str(told.choices[0].message.content)


@pytest.mark.slow
def test_what_a_dry_run_prints_is_served_as_a_file_with_its_secret(
    world: Any, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [f"--adapter={name}={path}" for name, path in world.adapters.items()]
    options = ["--strength=large=0", "--keys=clients", "--name=pets", "--dry-run"]
    _, printed, _ = shell.run("serve", f"--base-model={world.base}", *adapters, *options)
    file = tmp_path / "pets.yaml"
    file.write_text(f"{yaml.safe_dump(SECRET)}---\n{printed}")

    code, url, said = shell.run("serve", str(file))

    assert code == 0, said
    assert answer(world, url.strip(), "small", key=KEY) == world.answer("why", "small", 8)
    assert answer(world, url.strip(), "large", key=KEY) == world.answer("why", None, 8)
    with pytest.raises(AuthenticationError):
        answer(world, url.strip(), "small", key="nobody-0123456789")
    assert "; give one as OPENAI_API_KEY" in shell.run("ask", "pets", "why")[2]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert url.strip().removesuffix("/openai/v1") in shell.run("list", "--local")[1]
    assert "has base, small, large; say which to ask" in shell.run("ask", "pets", "why")[2]
    assert shell.run("ask", "pets", "why", "--model", "small")[0] == 0
    assert "a server 'pets' is there already" in shell.run("serve", str(file))[2]
    assert shell.run("serve", str(file), "--stop")[1] == "server pets stopped\n"


@pytest.mark.parametrize(
    ("adapters", "asked"),
    [([], "base"), (["a"], "a"), (["Docs_v1"], "Docs_v1"), (["a", "docs"], "docs")],
)
def test_who_names_no_model_asks_that_of_the_servers_name_or_its_only_adapter(
    adapters: list[str], asked: str
) -> None:
    models = [
        {"id": "base", "parent": None},
        *({"id": each, "parent": "base"} for each in adapters),
    ]

    assert default_model("docs", models) == asked


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "nothing to serve; name a job, a FILE.yaml, or --base-model"),
        (["x.yaml"], "can't read x.yaml"),
        (["x.yaml", "--watch"], "x.yaml says it all; leave out --watch"),
        (["docs", "--base-model", "hf://o/m"], "give one or the other"),
        (["--base-model", "./nowhere"], "'./nowhere' is no folder here"),
        (["--base-model", "hf://o/m", "--adapter", "docs"], "write NAME=SOURCE"),
        (["--base-model", "hf://o/m", "--adapter", "a=./nowhere"], "'./nowhere' is no folder"),
        (["--base-model", "hf://o/m", "--adapter=a=h/a", "--adapter=a=h/b"], "two adapters 'a'"),
        (["--base-model", "hf://o/m", "--strength", "1"], "of which adapter? write NAME=N"),
        (["--base-model", "hf://o/m", "--adapter=a=h/a", "--strength=x"], "'x' is no number"),
        (["--base-model", "hf://o/m", "--resource=cpu"], "--resource 'cpu': write NAME=AMOUNT"),
        (["--base-model", "hf://o/m", "--resource=cores=1"], "resources: cores: no resource;"),
        (["--base-model", "hf://o/m", "--strength=b=1"], "there is no adapter 'b'"),
        (["--base-model", "hf://o/m", "--merged"], "one adapter can be merged"),
        (["--base-model", "hf://o/m", "--adapter=a=h/a", "--keys=k"], "there is no Secret 'k'"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], words: str, shell: Shell) -> None:
    code, _, said = shell.run("serve", *args)
    assert code == 2
    assert words in said
    assert said.count("\n") == 1
