"""Metrics as Prometheus text, parsed by Prometheus' own client."""

import logging
import socket
from collections.abc import Callable, Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_trainer.watch import prometheus
from llm_trainer.watch.prometheus import Prometheus
from peftjob.progress import Progress

LABELS = {"job": "toy", "namespace": "team"}


@pytest.fixture
def served() -> Iterator[Prometheus]:
    made = prometheus.serve(0, host="127.0.0.1", labels=LABELS)
    assert made is not None
    yield made
    made.close()


def scrape(served: Prometheus) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{served.port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert all(sample.labels == LABELS for sample in samples)
    return {s.name.removeprefix("peftjob_training_"): s.value for s in samples}


def test_every_number_of_a_record_is_there(served: Prometheus) -> None:
    numbers = {"loss": 1.5, "learning_rate": 2e-4, "grad_norm": 0.5, "tokens": 1000, "mfu": 0.25}
    more = {"tokens_per_s": 50.0, "eta_s": 30.0, "memory_mb": 2.0}
    served.write(Progress(step=3, total_steps=9, epoch=0.5, **numbers, **more))
    assert scrape(served) == {
        "step": 3,
        "steps": 9,
        "epoch": 0.5,
        "loss": 1.5,
        "learning_rate": 2e-4,
        "grad_norm": 0.5,
        "tokens_total": 1000,
        "tokens_per_second": 50,
        "mfu_ratio": 0.25,
        "memory_peak_bytes": 2 * 2**20,
        "eta_seconds": 30,
    }


def test_an_evaluation_leaves_the_training_loss_in_place(served: Prometheus) -> None:
    served.write(Progress(step=3, total_steps=9, epoch=0.5, loss=1.5))
    served.write(Progress(step=3, total_steps=9, epoch=0.5, eval_loss=float("nan")))
    scraped = scrape(served)
    assert scraped["loss"] == 1.5
    assert scraped["eval_loss"] != scraped["eval_loss"]


def test_before_the_first_record_there_are_no_numbers(served: Prometheus) -> None:
    assert scrape(served) == {}


def test_another_path_is_not_found(served: Prometheus) -> None:
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"http://127.0.0.1:{served.port}/")


def test_a_port_in_use_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken, caplog.at_level(logging.WARNING, "llm_trainer"):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert prometheus.serve(port, host="127.0.0.1", labels=LABELS) is None
    (said,) = caplog.messages
    assert f"port {port} of 127.0.0.1 can't be had (Address already in use)" in said


def test_without_an_address_every_one_of_the_machines_is_served(
    free_port: Callable[[], int],
) -> None:
    made = prometheus.serve(free_port(), host="", labels=LABELS)
    assert made is not None
    assert scrape(made) == {}
    made.close()
