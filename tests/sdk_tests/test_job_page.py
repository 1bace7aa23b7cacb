"""A job as a notebook shows it."""

import xml.etree.ElementTree as ET

from peftjob import job_page
from peftjob.progress import Progress, Result

HISTORY = [
    Progress(step=step, total_steps=10, epoch=step / 5, loss=4.0 - step / 10, eta_s=60.0)
    for step in range(1, 6)
] + [Progress(step=5, total_steps=10, epoch=1.0, eval_loss=3.25)]
RESULT = Result(
    adapter="host/docs@sha256:0",
    base_model="m",
    steps=10,
    tokens=1,
    tokens_per_s=1.0,
    seconds=2.0,
    workers=1,
)


def _parse(html: str) -> ET.Element:
    """Also a check that what is shown is well-formed."""
    return ET.fromstring(html)


def test_progress_is_a_bar_numbers_and_two_curves() -> None:
    page = _parse(job_page.render("docs", "Running, step 5 of 10", HISTORY, None))
    assert page.find(".//progress").attrib["value"] == "0.5000"
    lines = page.findall(".//polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [5, 1]
    assert "1 min 0 s left" in "".join(page.itertext())


def test_before_the_first_step_there_is_the_state_alone() -> None:
    page = _parse(job_page.render("docs", "Created, fetching inputs", [], None))
    assert "".join(page.itertext()) == "docs Created, fetching inputs"


def test_a_result_ends_with_the_adapter() -> None:
    page = _parse(job_page.render("docs", "Succeeded", HISTORY, RESULT))
    assert page.findall(".//td")[-1].text == "host/docs@sha256:0"


def test_what_a_job_says_is_no_markup() -> None:
    page = _parse(job_page.render("docs", "Failed", [], None, reason="<script>x</script>"))
    assert page.find(".//script") is None
    assert "<script>x</script>" in "".join(page.itertext())
