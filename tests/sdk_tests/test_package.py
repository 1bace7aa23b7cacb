"""What is promised of the distribution as a whole."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "kubernetes", "kubeflow", "peft", "datasets")


def _loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import peftjob",
        "from peftjob import PeftJobSpec",
        "import peftjob.manifest, peftjob.inference, peftjob.stock",
        "import peftjob.local.supervisor",
        "import provider, storage_initializer.main, provider.hub, provider.web",
    ],
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    assert not _loaded(statement) & set(HEAVY)


def test_all_public_names_can_be_had() -> None:
    import peftjob

    assert all(getattr(peftjob, name) is not None for name in peftjob.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        peftjob.nothing  # noqa: B018


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_five_packages(tmp_path: Path) -> None:
    # Not isolated: that would fetch setuptools from the index.
    wheel_of = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel_of, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    packages = {name for name in top if not name.endswith(".dist-info")}
    assert packages == {
        "peftjob",
        "provider",
        "storage_initializer",
        "llm_trainer",
        "kserve_runtime",
    }


@pytest.mark.parametrize(
    "package",
    ["peftjob", "provider", "storage_initializer", "llm_trainer", "kserve_runtime"],
)
def test_every_package_says_what_it_may_import(package: str) -> None:
    text = (ROOT / package / "__init__.py").read_text()
    docstring = text.split('"""')[1]
    assert "import" in docstring.lower()
    assert "must not" in docstring or "never" in docstring or "loads no" in docstring
