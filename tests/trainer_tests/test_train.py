"""Whole trainings, by the launcher, on one process and on two that meet over loopback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llm_trainer import publish
from peftjob import oci
from peftjob.progress import Progress, Result, from_line


def records(out: str) -> list[Progress | Result]:
    lines = [from_line(line) for line in out.splitlines()]
    assert None not in lines
    return [line for line in lines if line is not None]


def result_of(out: str) -> Result:
    last = records(out)[-1]
    assert isinstance(last, Result)
    return last


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter/adapter_model.safetensors")


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def chats() -> list[dict[str, Any]]:
    words = ["red", "blue", "green", "seven", "eight", "nine", "north", "south"]
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {words[i % 8]}?" * (1 + i % 3)},
                {"role": "assistant", "content": f"The word is {words[i * 3 % 8]}."},
            ]
        }
        for i in range(37)
    ]


def set_up(made: Any, chats: list[Any], **training: Any) -> Any:
    """A job of three epochs with a held-out file, which takes four rows a step."""
    made.write("train.jsonl", chats)
    made.write("eval.jsonl", chats[:5])
    made.dataset = {"eval_files": ["eval.jsonl"]}
    made.training = {"num_train_epochs": 3, "eval_steps": 12, "dtype": "float32", **training}
    return made


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, make_workspace: Any, chats: list[Any]) -> Any:
    """A training on one process: its workspace and what the launcher left."""
    made = make_workspace(tmp_path_factory.mktemp("one"))
    set_up(made, chats)
    state = made.root / "workspace/.peftjob"
    state.mkdir()
    manifest = {"uri": "hf://org/toy-llama", "revision": "c0ffee", "digest": "sha256:abc"}
    (state / "model.json").write_text(json.dumps(manifest))
    process = made.run()
    assert process.returncode == 0, process.stderr
    return made, process


class TestOneProcess:
    """A training on one process, looked at from all sides."""

    def test_the_held_out_loss_goes_down(self, done: Any) -> None:
        result = result_of(done[1].stdout)
        assert result.eval_loss_before is not None
        assert result.eval_loss_after is not None
        assert result.eval_loss_after < 0.95 * result.eval_loss_before

    def test_the_last_line_is_the_result_and_is_left_in_three_places(self, done: Any) -> None:
        made, process = done
        line = process.stdout.splitlines()[-1]
        assert (made.output / "result.json").read_text() == line + "\n"
        assert (made.root / "termination-log").read_text() == line
        assert (made.output / "progress.jsonl").read_text() == process.stdout

    def test_progress_comes_every_logging_steps_and_counts_tokens(self, done: Any) -> None:
        lines = [r for r in records(done[1].stdout) if isinstance(r, Progress)]
        trained = [r for r in lines if r.loss is not None]
        assert [r.step for r in trained] == list(range(2, 31, 2))
        assert {r.total_steps for r in lines} == {30}
        assert [r.step for r in lines if r.eval_loss is not None] == [0, 12, 24, 30]
        assert trained[-1].tokens == 3 * self.tokens(done[0])
        assert trained[-1].eta_s == 0

    def tokens(self, made: Any) -> int:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(made.model_dir)
        rows = (made.root / "workspace/dataset/train.jsonl").read_text().splitlines()
        chats = [json.loads(row)["messages"] for row in rows]
        return sum(len(tokenizer.apply_chat_template(c, return_dict=False)) for c in chats)

    def test_stderr_is_a_few_lines_of_ours(self, done: Any) -> None:
        lines = done[1].stderr.splitlines()
        assert len(lines) == 4
        assert all(line.startswith("rank 0: ") for line in lines)

    def test_the_adapter_names_the_real_base_model_and_no_local_path(self, done: Any) -> None:
        folder = done[0].output / "adapter"
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "org/toy-llama"
        assert config["revision"] == "c0ffee"
        assert config["task_type"] == "CAUSAL_LM"
        for path in folder.iterdir():
            assert str(done[0].root).encode() not in path.read_bytes()
            assert path.stat().st_mode & 0o777 == 0o644

    def test_the_lineage_has_digests_versions_and_metrics(self, done: Any) -> None:
        lineage = json.loads((done[0].output / "adapter/peftjob.json").read_text())
        assert lineage["base_model"]["digest"] == "sha256:abc"
        assert lineage["libraries"]["torch"] == torch.__version__
        assert lineage["spec"]["name"] == "toy"
        assert lineage["metrics"]["steps"] == 30

    def test_peft_loads_what_the_image_holds_and_it_has_the_trained_loss(
        self, done: Any, tmp_path: Path
    ) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        made, process = done
        result = result_of(process.stdout)
        pulled = oci.pull(oci.Reference.parse(result.adapter), tmp_path / "adapter")
        assert str(pulled) == result.adapter
        base = AutoModelForCausalLM.from_pretrained(made.model_dir)
        tuned = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")

        rows = (made.root / "workspace/dataset/eval.jsonl").read_text().splitlines()
        total = count = 0.0
        for row in rows:
            messages = json.loads(row)["messages"]
            prompt = tokenizer.apply_chat_template(
                messages[:1], add_generation_prompt=True, return_dict=False
            )
            # Without the line break that the template writes after the end of a turn.
            whole = tokenizer.apply_chat_template(messages, return_dict=False)
            last = int(np.flatnonzero(np.array(whole) == tokenizer.eos_token_id)[-1]) + 1
            with torch.no_grad():
                chances = tuned(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            total -= sum(float(chances[i - 1, whole[i]]) for i in range(len(prompt), last))
            count += last - len(prompt)
        assert result.eval_loss_after == pytest.approx(total / count, rel=1e-5)

    def test_the_same_training_gives_the_same_image(self, done: Any) -> None:
        made, process = done
        first = result_of(process.stdout)
        again = made.run()
        assert result_of(again.stdout).adapter == first.adapter


class TestSeveralProcesses:
    """Replicas that meet over loopback, with the operator's environment."""

    def test_two_replicas_train_what_one_would(
        self, done: Any, workspace: Any, chats: list[Any]
    ) -> None:
        set_up(workspace, chats, per_device_train_batch_size=2)
        master, worker = workspace.run_nodes(2)

        assert (master.returncode, worker.returncode) == (0, 0), master.stderr
        single, double = result_of(done[1].stdout), result_of(master.stdout)
        assert double.workers == 2
        assert double.tokens == single.tokens
        assert double.eval_loss_after == pytest.approx(single.eval_loss_after, rel=1e-5)
        assert double.train_loss == pytest.approx(single.train_loss, rel=1e-5)
        assert furthest(weights(done[0].output), weights(workspace.output)) < 1e-4
        # Rank 0 alone writes.
        assert worker.stdout == worker.stderr == ""
        assert not (workspace.root / "none").exists()
        assert not (workspace.root / "termination-log-1").exists()

    @pytest.mark.slow
    def test_two_processes_of_a_replica_that_accumulate_train_the_same(
        self, done: Any, workspace: Any, chats: list[Any]
    ) -> None:
        set_up(workspace, chats, per_device_train_batch_size=1, gradient_accumulation_steps=2)
        ours = workspace.run(PET_NNODES="1", PET_NODE_RANK="0", PET_NPROC_PER_NODE="2")
        assert ours.returncode == 0, ours.stderr
        single, double = result_of(done[1].stdout), result_of(ours.stdout)
        assert double.train_loss == pytest.approx(single.train_loss, rel=1e-5)
        assert double.eval_loss_after == pytest.approx(single.eval_loss_after, rel=1e-5)
        # Adam turns rounding errors into steps where gradients are near zero.
        assert furthest(weights(done[0].output), weights(workspace.output)) < 1e-3

    def test_an_error_is_the_same_line_once_in_each_replica(
        self, workspace: Any, chats: list[Any]
    ) -> None:
        set_up(workspace, [*chats, {"messages": []}])
        done = workspace.run_nodes(2)
        assert [d.returncode for d in done] == [11, 11]
        for node, process in enumerate(done):
            assert process.stderr.splitlines() == [
                "train.jsonl row 38: messages: is empty",
                "error: 1 of 38 rows can't be trained on: train.jsonl row 38: messages: is empty",
            ]
            log = (workspace.root / f"termination-log-{node}").read_text()
            assert log == process.stderr.splitlines()[-1]

    @pytest.mark.slow
    def test_a_replica_whose_peer_is_killed_ends_soon_and_retryable(
        self, workspace: Any, chats: list[Any]
    ) -> None:
        set_up(workspace, chats, num_train_epochs=10_000, logging_steps=1)
        master, worker = workspace.start_nodes(2)
        assert master.stdout.readline()
        (pid,) = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
        os.kill(int(pid), signal.SIGKILL)
        # Soon: a broken connection alone would be noticed after half an hour.
        _, worker_err = worker.communicate(timeout=120)
        _, master_err = master.communicate(timeout=120)

        assert (master.returncode, worker.returncode) == (128, 137)
        assert worker_err.splitlines()[-1].startswith("error: a worker was ended by SIGKILL")
        assert master_err.splitlines()[-1].startswith("error: rank 0 lost contact with another")
        # No step is lost, though none was due to be saved.
        assert list(workspace.output.glob("checkpoints/*/step-*"))


class TestEnds:
    """How a job ends that can't go its way."""

    def test_a_mistake_that_only_the_model_shows_is_one_line(self, workspace: Any) -> None:
        workspace.write("a.jsonl", [{"text": "red blue"}])
        workspace.spec = {"method": {"target_modules": ["q_prj"]}}
        done = workspace.run()
        assert done.returncode == 12
        assert "has no module 'q_prj'; did you mean q_proj" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    def test_debug_shows_the_traceback_as_well(self, workspace: Any) -> None:
        done = workspace.run("--debug")
        assert done.returncode == 11
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: no data files in")

    @pytest.mark.parametrize(
        ("args", "env", "says"),
        [
            (["--wat"], {}, "unrecognized arguments: --wat"),
            ([], {"PEFTJOB_SPEC": "{"}, "the spec has 1 problem: not JSON"),
            ([], {"PEFTJOB_SPEC": ""}, "no job to work on: set PEFTJOB_SPEC"),
        ],
    )
    def test_a_wrong_call_costs_no_start_of_torch(
        self, workspace: Any, args: list[str], env: dict[str, str], says: str
    ) -> None:
        done = workspace.run(*args, **env, PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == 2
        assert says in done.stderr
        imported = [line.split("|")[-1].strip() for line in done.stderr.splitlines()]
        assert "peftjob" in imported
        assert "torch" not in imported

    def test_what_the_storage_initializer_gave_up_on_is_passed_on(self, workspace: Any) -> None:
        state = workspace.root / "workspace/.peftjob"
        state.mkdir()
        (state / "failed.json").write_text('{"message": "no such repository", "exit_code": 10}')
        done = workspace.run()
        assert done.returncode == 10
        assert done.stderr == "error: no such repository\n"
        assert (workspace.root / "termination-log").read_text() == "error: no such repository"

    @pytest.mark.slow
    def test_a_failed_publication_is_repeated_without_training_again(self, workspace: Any) -> None:
        workspace.write("a.jsonl", [{"text": "red blue"}] * 8)
        blocked = workspace.root / "registry"
        blocked.write_text("in the way")
        ref = f"oci-layout://{blocked}/toy:v1"
        workspace.spec = {"output": {"registry": {"ref": ref}}}
        first = workspace.run()
        assert first.returncode == 13, first.stderr
        blocked.unlink()

        second = workspace.run()

        assert second.returncode == 0, second.stderr
        (line,) = second.stdout.splitlines()
        result = from_line(line)
        assert isinstance(result, Result)
        assert result.adapter.startswith(ref + "@sha256:")
        assert result.steps == 2
        assert not (workspace.output / publish.PENDING_FILE).exists()


@pytest.mark.slow
class TestOtherWaysIn:
    """torchrun, elastic replicas and the stock client's arguments."""

    def test_torchrun_starts_workers_too(self, workspace: Any) -> None:
        workspace.write("a.jsonl", [{"text": "red blue"}] * 8)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        done = subprocess.run(
            [*command, "--nproc-per-node=2", "-m", "llm_trainer"],
            env=workspace.env(TMPDIR=str(workspace.root)),
            cwd=workspace.root,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert result_of(done.stdout).workers == 2

    @pytest.mark.parametrize(("rows", "code"), [(8, 0), (0, 11)])
    def test_an_elastic_replica_ends_like_any_other(
        self, workspace: Any, free_port: Any, rows: int, code: int
    ) -> None:
        workspace.write("a.jsonl", [{"text": "red blue"}] * rows)
        done = workspace.run(
            PET_NNODES="1:2",
            PET_NPROC_PER_NODE="1",
            PET_RDZV_BACKEND="c10d",
            PET_RDZV_ENDPOINT=f"localhost:{free_port()}",
            PET_RDZV_CONF="last_call_timeout=1",
        )
        assert done.returncode == code, done.stderr
        if code:
            assert done.stderr.splitlines()[-1].endswith("a.jsonl: is empty")

    def test_the_stock_clients_arguments_are_enough(self, workspace: Any) -> None:
        from peft import LoraConfig
        from transformers import TrainingArguments

        workspace.write("a.jsonl", [{"text": "red blue"}] * 8)
        training = TrainingArguments(output_dir="out", num_train_epochs=1, logging_steps=1)
        lora = LoraConfig(r=2, target_modules=["q_proj"]).to_dict()
        lora["target_modules"] = sorted(lora["target_modules"])
        done = workspace.run(
            *("--model_uri", "hf://org/toy-llama"),
            *("--transformer_type", "AutoModelForCausalLM"),
            *("--num_labels", "None"),
            *("--model_dir", str(workspace.root / "workspace/model")),
            *("--dataset_dir", str(workspace.root / "workspace/dataset")),
            *("--lora_config", json.dumps(lora, default=str)),
            *("--training_parameters", json.dumps(training.to_dict(), default=str)),
            PEFTJOB_SPEC="",
            PEFTJOB_OUTPUT=str(workspace.root / "not-mounted"),
            HOSTNAME="tune-master-0",
        )
        assert done.returncode == 0, done.stderr
        output = workspace.root / "workspace/output"
        assert result_of(done.stdout).adapter.startswith(f"oci-layout://{output}/registry/tune:")
        config = json.loads((output / "adapter/adapter_config.json").read_text())
        assert config["target_modules"] == ["q_proj"]
