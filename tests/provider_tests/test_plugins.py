"""Providers of the user's own, installed as a package is: by an entry point."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from peftjob.errors import SourceError
from provider import fetch, providers

ROOT = Path(__file__).parents[2]

OWN = """
from provider import Body, Listing, RemoteFile
from peftjob.errors import SourceError

ROWS = {"greetings": b'{"text": "hello"}\\n'}

def find(request):
    name = request.uri.removeprefix("memo://")
    if name not in ROWS:
        raise SourceError(f"no memo {name!r}; known are {', '.join(ROWS)}")
    file = RemoteFile(path=f"{name}.jsonl", open=lambda start: Body([ROWS[name]]))
    return Listing([file])
"""

# Written as for the stock storage initializer: the abstract classes, the constants, no spec.
STOCK = """
import json, os
from kubeflow.storage_initializer.abstract_dataset_provider import datasetProvider
from kubeflow.storage_initializer.abstract_model_provider import modelProvider
from kubeflow.storage_initializer.constants import VOLUME_PATH_DATASET

class Rows(datasetProvider):
    def load_config(self, serialised_args):
        self.config = json.loads(serialised_args)

    def download_dataset(self):
        os.makedirs(VOLUME_PATH_DATASET, exist_ok=True)
        with open(os.path.join(VOLUME_PATH_DATASET, "rows.jsonl"), "w") as file:
            json.dump({"text": self.config["uri"]}, file)

class Model(modelProvider):
    def load_config(self, serialised_args):
        self.config = json.loads(serialised_args)

    def download_model_and_tokenizer(self):
        os.makedirs(self.config["dest"] + "/sub")
        for name in ("config.json", "sub/vocab.txt"):
            with open(os.path.join(self.config["dest"], name), "w") as file:
                file.write(self.config["revision"])
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder like site-packages, with a distribution that has our entry points."""
    folder = tmp_path / "site"
    info = folder / "own-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        dedent("""\
            [peftjob.providers]
            memo = own_memo
            rows = own_stock:Rows
            model = own_stock:Model
            neither = json
            broken = own_missing
            hf = own_memo
            """)
    )
    (folder / "own_memo.py").write_text(OWN)
    (folder / "own_stock.py").write_text(STOCK)
    return folder


def fetched(site: Path, uri: str, kind: str = "dataset", revision: str | None = None) -> str:
    """Fetch in a process that has the distribution; what it prints or the error's last line."""
    code = (
        "import json, sys; from pathlib import Path; from provider import fetch, providers;"
        f"got = fetch({uri!r}, Path({str(site.parent / 'dest')!r}), kind={kind!r},"
        f" revision={revision!r});"
        "print(json.dumps([[f.path for f in got.files], providers()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{site}", "HOME": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout or done.stderr.strip().splitlines()[-1]


def test_a_module_with_find_is_a_provider(site: Path) -> None:
    names, known = json.loads(fetched(site, "memo://greetings"))
    assert names == ["greetings.jsonl"]
    assert known["memo"] == "own_memo"
    assert (site.parent / "dest/greetings.jsonl").read_text() == '{"text": "hello"}\n'


def test_its_own_errors_reach_the_user(site: Path) -> None:
    assert "SourceError: no memo 'x'; known are greetings" in fetched(site, "memo://x")


def test_a_stock_class_that_writes_to_the_constant_is_a_provider(site: Path) -> None:
    names, _ = json.loads(fetched(site, "rows://a"))
    assert names == ["rows.jsonl"]
    assert json.loads((site.parent / "dest/rows.jsonl").read_text()) == {"text": "rows://a"}


def test_a_stock_class_that_reads_dest_is_a_provider(site: Path) -> None:
    names, _ = json.loads(fetched(site, "model://a", kind="model", revision="v1"))
    assert names == ["config.json", "sub/vocab.txt"]
    assert (site.parent / "dest/sub/vocab.txt").read_text() == "v1"
    assert sorted(path.name for path in site.parent.iterdir()) == ["dest", "site"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("rows://a", "Rows, the provider of rows://a, has no download_model_and_tokenizer()"),
        ("neither://a", "'json' of neither:// has neither find(request) nor"),
        ("broken://a", "'own_missing' of broken:// can't be imported: ModuleNotFoundError"),
    ],
)
def test_what_is_no_provider_is_one_line(uri: str, message: str, site: Path) -> None:
    assert message in fetched(site, uri, kind="model")


def test_a_scheme_of_ours_can_not_be_taken_over(site: Path) -> None:
    _, known = json.loads(fetched(site, "memo://greetings"))
    assert known["hf"] == "provider.hub"


def test_an_unknown_scheme_lists_the_known_ones_and_how_to_add_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        fetch("ftp://host/x", tmp_path / "d", kind="dataset")
    assert all(f"{scheme}://" in str(caught.value) for scheme in providers())
    assert "an entry point 'ftp' in the group peftjob.providers" in str(caught.value)
