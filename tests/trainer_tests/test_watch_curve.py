"""The loss curve: which lines it has, and that it is always the same."""

import io
import math
import sys
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from llm_trainer.watch import curve
from peftjob.progress import Progress


def records(steps: int, *, every: int = 10, evaluations: int = 50) -> list[Progress]:
    """A training that learns its rows by heart after a while."""
    made = []
    for step in range(0, steps + 1, every):
        at = {"step": step, "total_steps": steps, "epoch": 3 * step / steps}
        if step:
            made.append(Progress(**at, loss=1 + 2 * math.exp(-step / 60) + 0.1 * math.sin(step)))
        if step % evaluations == 0:
            made.append(Progress(**at, eval_loss=1.2 + 2 * math.exp(-step / 50) + step / 900))
    return made


def picture(png: bytes | None) -> "Image.Image":
    assert png is not None
    return Image.open(io.BytesIO(png))


def has(png: bytes | None, color: str) -> bool:
    wanted = tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
    return any(pixel == wanted for _, pixel in picture(png).convert("RGB").getcolors(1 << 24))


def test_both_losses_are_drawn() -> None:
    png = curve.draw(records(600), title="toy")
    assert picture(png).size == (1200, 675)
    assert has(png, curve._BLUE)
    assert has(png, curve._ORANGE)


def test_without_held_out_rows_there_is_the_training_loss_alone() -> None:
    png = curve.draw([r for r in records(600) if r.loss is not None], title="toy")
    assert has(png, curve._BLUE)
    assert not has(png, curve._ORANGE)


def test_the_same_records_give_the_same_bytes_whatever_the_users_settings() -> None:
    first = curve.draw(records(600), title="toy")
    with matplotlib.rc_context({"lines.linewidth": 9, "savefig.dpi": 30, "font.size": 30}):
        assert curve.draw(records(600), title="toy") == first
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_the_picture_names_no_program_and_no_time() -> None:
    assert set(picture(curve.draw(records(60), title="toy")).info) == {"dpi"}


def test_speed_is_not_in_the_picture() -> None:
    slow = [r.model_copy(update={"tokens_per_s": 1.0, "eta_s": 9.0}) for r in records(60)]
    assert curve.draw(slow, title="toy") == curve.draw(records(60), title="toy")


def test_losses_that_are_no_numbers_are_left_out() -> None:
    bad = Progress(step=61, total_steps=60, epoch=3.0, loss=math.nan, eval_loss=math.inf)
    assert has(curve.draw([*records(60), bad], title="toy"), curve._BLUE)
    assert curve.draw([bad], title="toy") is None


def test_a_training_of_one_line_is_a_point() -> None:
    point = [Progress(step=1, total_steps=1, epoch=1.0, loss=2.0)]
    assert has(curve.draw(point, title="toy"), curve._BLUE)


def test_without_records_there_is_no_picture_and_no_file(tmp_path: Path) -> None:
    assert curve.save([tmp_path], [], title="toy") is None
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_to_every_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    name = curve.save(folders, records(60), title="toy")
    assert name == "loss.png"
    assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_without_matplotlib_the_training_does_without_the_picture(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert curve.draw(records(60), title="toy") is None
    assert "no loss curve is drawn" in caplog.text


def test_a_smoothed_line_is_the_mean_of_neighbours_and_does_not_lag() -> None:
    falling = [100.0 - i for i in range(90)]
    smooth = curve.smoothed(falling)
    assert smooth[:80] == pytest.approx(falling[:80])
    assert smooth[-1] == pytest.approx(sum(falling[-4:]) / 4)
