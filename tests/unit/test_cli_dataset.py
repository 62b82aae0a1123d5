"""`rl-onoff sample|distributions|divergence|switch` over a data set: options, output, resuming, exit codes."""

from __future__ import annotations

import errno
import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from rl_onoff import AsyncClient, statistics
from rl_onoff.cli import app
from rl_onoff.runs import RunFolder
from rl_onoff.tensors import read_metadata
from tests.unit.service_double import SWITCHED, problem

runner = CliRunner()
MODELS = {
    "models": [
        {"name": name, "pair": "p", "side": side, "backend": "hf", "state": "ready", "fingerprint": f"f-{name}"}
        for name, side in (("base", "a"), ("rl", "b"))
    ],
    "pairs": [{"name": "p", "a": "base", "b": "rl"}],
}


class Answers:
    """A service that answers as it should; keeps the bodies of what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.served = 0
        self.moves_after = 100

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/models":
            return httpx.Response(200, json=MODELS)
        body = json.loads(request.content)
        self.bodies.append(body)
        if body.get("prompt") in self.refused:
            return problem(422, "context-exceeded", detail="too long")
        return httpx.Response(200, json=getattr(self, request.url.path[1:].replace("-", "_"))(body))

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = body["sampling"]
        results = [
            {
                "prompt_index": 0,
                "index": index,
                "text": f"A: {body['prompt'][-1]}",
                "token_ids": [1, 2],
                "finish_reason": "stop",
                "seed": sampling["seed"] + index,
                "metrics": dict.fromkeys(body["metrics"], 2.0),
            }
            for index in range(sampling["n"])
        ]
        return {"id": "g", "model": "base", "results": results, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    def switch_generate(self, body: dict[str, Any]) -> dict[str, Any]:
        return SWITCHED | {"seed": body["sampling"]["seed"]}

    def divergence(self, body: dict[str, Any]) -> dict[str, Any]:
        perplexity = {"a": 2.0, "b": 4.0, "ratio": 2.0, "ratio_stderr": None}
        item = {
            "token_ids": [1, 2],
            "tokens": ["x", "y"],
            "values": {name: [0.25, None] for name in body["measures"]},
            "infinite": {name: [1] for name in body["measures"]},
            "negative_infinite": {"delta_logp": [1]},
            "logprobs_a": [math.log(0.5), math.log(0.5)],
            "logprobs_b": [math.log(0.25), math.log(0.25)],
            "columns": {"top1_agree": [1.0, 0.0], "top_prob_a": [0.5, 0.75], "rank_of_b_in_a": [1.0, 2.0]},
            "summary": {"positions": 2, "measures": {}, "top1_agreement": 0.5, "perplexity": perplexity},
        }
        self.served += 1
        provenance = {
            "version": "0",
            "backend": "hf",
            "a_fingerprint": "f",
            "b_fingerprint": "f",
            "vocab_size": 3,
            "dtypes": [],
            "units": "nats",
            "temperature": 1.0,
            "prompt_mode": "shared",
            "kernel": "streaming" if self.served <= self.moves_after else "reference",
        }
        floor = {"pass_shape": {}, "bfloat16_logits": {"js": self.floor(self.served)}}
        answer = {"id": "d", "a": "base", "b": "rl", "items": [item], "provenance": provenance}
        return answer | ({"noise_floor": floor} if body.get("noise_floor") else {})

    def floor(self, item: int) -> dict[str, Any]:
        """Of two tokens with values `item` and `item` + 1, in 1e-6."""
        least, most = 1e-6 * item, 1e-6 * (item + 1)
        fields = {"count": 2, "infinite": 0, "mean": (least + most) / 2, "std": 1e-6 / math.sqrt(2), "percentiles": {}}
        return fields | {"stderr": 5e-7, "min": least, "max": most}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    transport = httpx.MockTransport(answers)
    monkeypatch.setattr("rl_onoff.cli.dataset.AsyncClient", partial(AsyncClient, transport=transport))
    return answers


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    rows = [{"id": f"r{i}", "prompt": f"q{i}", "solution": "s", "reference": str(i)} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().split("\n")[:-1]]


def test_samples_are_written_scored_and_summed_up(service: Answers, data: Path, tmp_path: Path) -> None:
    options = "-m base --n 2 --seed 4 --max-tokens 9 --metric exact_match:after=A: --metric perplexity --json"
    result = runner.invoke(app, ["sample", "-d", str(data), *options.split(), "-o", str(tmp_path / "r")])
    assert result.exit_code == 0, result.stderr
    rows = read(tmp_path / "r")
    assert sorted((row["id"], row["sample"]) for row in rows) == [(f"r{i}", n) for i in range(5) for n in range(2)]
    assert rows[0]["metrics"] == {"exact_match:after=A:": 1.0, "perplexity": 2.0}
    assert service.bodies[0]["sampling"].keys() == {"max_tokens", "n", "seed"}
    assert service.bodies[0]["metrics"] == ["perplexity"]  # scored here, but for what only the service knows
    summary = json.loads(result.stdout)
    assert summary == json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["metrics"]["exact_match:after=A:"]["value"] == 1.0
    identity = json.loads((tmp_path / "r" / "manifest.json").read_text())["identity"]
    assert identity["models"] == [{"name": "base", "fingerprint": "f-base"}]
    assert identity["data"]["source"] == "d.jsonl"


def test_a_run_is_resumed_and_grows(service: Answers, data: Path, tmp_path: Path) -> None:
    command = ["sample", "-d", str(data), "-m", "base", "-o", str(tmp_path / "r")]
    assert runner.invoke(app, [*command, "--limit", "2"]).exit_code == 0
    asked = len(service.bodies)
    refused = runner.invoke(app, command)
    assert refused.exit_code == 2
    assert "--resume goes on" in refused.stderr
    result = runner.invoke(app, [*command, "--resume"])
    assert result.exit_code == 0
    assert len(service.bodies) == asked + 3
    assert "3 results, 2 were there before" in result.stderr
    assert sorted(row["id"] for row in read(tmp_path / "r")) == [f"r{i}" for i in range(5)]
    other = runner.invoke(app, [*command, "--resume", "--seed", "9"])
    assert other.exit_code == 2
    assert "settings.seed was 0, now 9" in other.stderr


def test_without_a_folder_results_are_lines_on_stdout(service: Answers, data: Path) -> None:
    result = runner.invoke(app, ["divergence", "-d", str(data), "--limit", "1", "--measure", "js"])
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["values"] == {"js": [0.25, None]}
    assert service.bodies[0]["items"] == [{"prompt": "q0", "solution": "s"}]


def test_the_summary_of_divergences(service: Answers, data: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["divergence", "-d", str(data), "-o", str(tmp_path / "r"), "--json"])
    found = json.loads(result.stdout)
    assert (found["positions"], found["items"], found["top1_agreement"]) == (10, 5, 0.5)
    assert (found["perplexity"]["a"], found["perplexity"]["b"]) == pytest.approx((2.0, 4.0))
    assert (found["measures"]["js"]["mean"], found["measures"]["js"]["infinite"]) == (0.25, 5)
    assert found["measures"]["js"]["max_at"] == {
        "item": found["delta_p"]["max_at"]["item"],
        "position": 1,
        "token_id": 2,
        "token": "y",
    }
    assert found["shifts"]["marginal"]["value"] == 0.5
    assert found["provenance"]["kernel"] == "streaming"
    assert "provenances" not in found
    assert "noise_floor" not in found


def test_the_sign_of_an_infinite_value_is_read(service: Answers, data: Path, tmp_path: Path) -> None:
    command = ["divergence", "-d", str(data), "--measure", "delta_logp", "--measure", "js", "-o", str(tmp_path / "r")]
    result = runner.invoke(app, [*command, "--json"])
    measures = json.loads(result.stdout)["measures"]
    assert (measures["delta_logp"]["min"], measures["delta_logp"]["max"]) == (None, 0.25)
    assert (measures["js"]["min"], measures["js"]["max"]) == (0.25, None)


def test_the_noise_floor_of_a_run_is_that_of_all_its_items(service: Answers, data: Path, tmp_path: Path) -> None:
    command = ["divergence", "-d", str(data), "--noise-floor", "-o", str(tmp_path / "r"), "--json"]
    found = json.loads(runner.invoke(app, command).stdout)["noise_floor"]["bfloat16_logits"]["js"]
    values = np.array([[i, i + 1] for i in range(1, 6)]) * 1e-6
    assert (found["count"], found["min"], found["max"]) == (10, pytest.approx(1e-6), pytest.approx(6e-6))
    assert found["mean"] == pytest.approx(values.mean())
    assert found["std"] == pytest.approx(values.std(ddof=1))
    assert found["stderr"] == pytest.approx(values.std(ddof=1) / math.sqrt(10))
    assert found["clustered_stderr"] == pytest.approx(
        statistics.clustered_stderr(values.ravel(), np.repeat(np.arange(5), 2))
    )


def test_results_of_several_origins_are_told_apart(service: Answers, data: Path, tmp_path: Path) -> None:
    service.moves_after = 2
    result = runner.invoke(app, ["divergence", "-d", str(data), "-o", str(tmp_path / "r")])
    assert "results of 2 origins, which differ in kernel: see provenances in summary.json" in result.stderr
    found = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert found["provenance"] is None
    assert sorted((each["kernel"], each["results"]) for each in found["provenances"]) == [
        ("reference", 3),
        ("streaming", 2),
    ]


def test_a_run_from_before_columns_were_kept_is_not_gone_on_with(service: Answers, data: Path, tmp_path: Path) -> None:
    command = ["divergence", "-d", str(data), "-o", str(tmp_path / "r"), "--limit", "1"]
    assert runner.invoke(app, command).exit_code == 0
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    del manifest["identity"]["settings"]["columns"]
    (tmp_path / "r" / "manifest.json").write_text(json.dumps(manifest))
    result = runner.invoke(app, [*command, "--resume"])
    assert result.exit_code == 2
    assert "settings.columns was null, now true" in result.stderr


def test_switching_over_a_data_set(service: Answers, data: Path, tmp_path: Path) -> None:
    options = "--on 0.2 --n 2 --record entropy_a --top-p 0.9 --metric exact_match"
    result = runner.invoke(app, ["switch", "-d", str(data), *options.split(), "-o", str(tmp_path / "r")])
    assert result.exit_code == 0, result.stderr
    assert service.bodies[0]["policy"] == {"kind": "divergence", "on": 0.2}
    assert service.bodies[0]["measures"] == ["entropy_a"]
    assert service.bodies[0]["sampling"]["top_p"] == 0.9
    rows = read(tmp_path / "r")
    assert len(rows) == 10
    assert len({row["seed"] for row in rows}) == 10
    assert rows[0]["leads"] == "ab"


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_whole_rows_go_into_shards(
    service: Answers, data: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    bodies: list[dict[str, Any]] = []

    def full(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/models":
            return httpx.Response(200, json=MODELS)
        bodies.append(json.loads(request.content))
        mine = bodies[-1]["items"][0]["prompt"][1:]
        tensors = {"0.values": values, "0.token_ids": np.array([0, 2]), "0.entropy": np.array([0.5, 1.5])}
        common = {"kind": "logprobs", "temperature": 0.7, "provenance": {"fingerprint": "f", "merged_ids": [1, 2]}}
        own = {"id": f"dist_{mine}", "tokens": [["\n", mine]], "device": f"cuda:{int(mine) % 2}"}
        return httpx.Response(200, content=save(tensors, {n: json.dumps(v) for n, v in (common | own).items()}))

    transport = httpx.MockTransport(full)
    monkeypatch.setattr("rl_onoff.cli.dataset.AsyncClient", partial(AsyncClient, transport=transport))
    monkeypatch.setattr("rl_onoff.cli.dataset.ShardWriter", partial(_small_shards))
    command = ["distributions", "-d", str(data), "-m", "base", "--format", form, "-o", str(tmp_path / "r")]
    command += ["--temperature", "0.7", "--merge-eos", "--concurrency", "1"]
    assert runner.invoke(app, [*command, "--limit", "3"]).exit_code == 0
    result = runner.invoke(app, [*command, "--resume", "--json"])
    assert result.exit_code == 0, result.stderr
    assert (bodies[0]["merge_eos"], bodies[0]["prompt_mode"]) == (True, "shared")
    assert json.loads(result.stdout)["tokens"] == 10  # five items of two tokens
    index = read(tmp_path / "r")
    for row in index:  # what is an item's own is in its line
        assert (row["prompt"], row["token_ids"]) == (f"q{row['id'][1:]}", [0, 2])
        assert (row["tokens"], row["shape"]) == (["\n", row["id"][1:]], [2, 3])
        others = [each["id"] for each in index if each["shard"] == row["shard"] and each is not row]
        assert row.get("metadata") == ({"device": f"cuda:{int(row['id'][1:]) % 2}"} if others else None)
    assert sorted(row["id"] for row in index) == [f"r{i}" for i in range(5)]
    shards = {row["shard"] for row in index}
    assert len(shards) == 3  # of two rows at most: two shards of the first run, one of the second
    for row in index:
        path = tmp_path / "r" / row["shard"]
        if form == "safetensors":
            tensors = load_file(path)
            metadata = read_metadata(path.read_bytes())
            assert tensors[f"{row['id']}.entropy"].tolist() == [0.5, 1.5]
            assert (tensors[f"{row['id']}.values"] == values).all()
            assert tensors[f"{row['id']}.token_logprobs"].tolist() == [0, 5]
        else:
            import pyarrow.parquet

            read_back = pyarrow.parquet.read_table(path)
            metadata = {name.decode(): json.loads(value) for name, value in read_back.schema.metadata.items()}
            table = read_back.to_pylist()
            mine = [line for line in table if line["id"] == row["id"]]
            assert [line["values"] for line in mine] == values.tolist()
            assert [line["token_logprob"] for line in mine] == [0, 5]
            assert [line["entropy"] for line in mine] == [0.5, 1.5]
        assert metadata.keys() - {"device"} == {"kind", "temperature", "provenance"}
        assert metadata["temperature"] == 0.7
        assert metadata["provenance"] == {"fingerprint": "f", "merged_ids": [1, 2]}


def _small_shards(run: RunFolder, form: Any) -> Any:
    from rl_onoff.runs.shards import ShardWriter

    return ShardWriter(run, form, shard_bytes=40)


def test_items_of_the_api_are_data(service: Answers, tmp_path: Path) -> None:
    rows = [{"prompt_ids": [3], "solution_ids": [1, 0]}, {"prompt": "q", "solution_ids": [2]}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["divergence", "-d", str(tmp_path / "d.jsonl"), "-o", str(tmp_path / "r"), "--concurrency", "1"]
    result = runner.invoke(app, [*command, "--merge-eos"])
    assert result.exit_code == 0, result.stderr
    assert [body["items"] for body in service.bodies] == [[row] for row in rows]
    assert {body["merge_eos"] for body in service.bodies} == {True}
    assert [row.get("prompt_ids") for row in read(tmp_path / "r")] == [[3], None]
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["identity"]["settings"]["merge_eos"] is True
    again = runner.invoke(app, [*command, "--resume"])
    assert again.exit_code == 2
    assert "settings.merge_eos was true" in again.stderr.replace("\n", " ")


@pytest.mark.parametrize("name", ["prompt_ids", "solution_ids"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("3 1", "must be a list of integers, not str"),
        ([1, "b"], "entry 1 is no token id: b"),
        ([True], "entry 0 is no token id: True"),
        ([1, 2.5], "entry 1 is no token id: 2.5"),
        ([-1], "entry 0 is no token id: -1"),
        ([], "there are no token ids"),
    ],
)
def test_ids_that_are_none_are_named(service: Answers, tmp_path: Path, name: str, value: Any, says: str) -> None:
    good: dict[str, Any] = {"prompt_ids": [3], "solution_ids": [1, 0]}
    rows = [good, good | {name: value}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = runner.invoke(app, ["divergence", "-d", str(tmp_path / "d.jsonl")])
    assert result.exit_code == 2
    assert service.bodies == []
    assert f"d.jsonl:2: column '{name}': " in " ".join(result.stderr.split())
    assert says in " ".join(result.stderr.split())


def test_merged_logits_are_refused_before_anything_is_sent(service: Answers, data: Path) -> None:
    command = ["distributions", "-d", str(data), "-m", "base", "--top-k", "2", "--kind", "logits", "--merge-eos"]
    result = runner.invoke(app, command)
    assert result.exit_code == 2
    assert "no model has a logit" in result.stderr
    assert service.bodies == []


def test_bad_rows_are_known_before_anything_is_sent(service: Answers, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"id": "r9"}\nno json\n')
    result = runner.invoke(app, ["sample", "-d", str(data), "-m", "base"])
    assert result.exit_code == 2
    assert "d.jsonl:6: column 'prompt'" in result.stderr
    assert "d.jsonl:7: no JSON" in result.stderr
    assert "2 bad rows" in result.stderr
    assert not service.bodies
    result = runner.invoke(app, ["sample", "-d", str(data), "-m", "base", "--skip-bad"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 5
    assert "2 rows could not be used" in result.stderr


def test_a_row_the_service_refuses(service: Answers, data: Path, tmp_path: Path) -> None:
    service.refused = {"q3"}
    command = ["sample", "-d", str(data), "-m", "base", "-o", str(tmp_path / "r")]
    result = runner.invoke(app, command)
    assert result.exit_code == 2
    assert "d.jsonl:4: too long" in result.stderr
    result = runner.invoke(app, [*command, "--resume", "--skip-bad", "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["failed"] == 1
    (refused,) = [row for row in read(tmp_path / "r") if "error" in row]
    assert refused == {"id": "r3", "sample": 0, "error": {"type": "context-exceeded", "detail": "too long"}}


def test_a_second_writer_is_75(service: Answers, data: Path, tmp_path: Path) -> None:
    command = ["sample", "-d", str(data), "-m", "base", "-o", str(tmp_path / "r"), "--resume"]
    assert runner.invoke(app, command).exit_code == 0
    identity = json.loads((tmp_path / "r" / "manifest.json").read_text())["identity"]
    with RunFolder.open(tmp_path / "r", identity, resume=True):
        result = runner.invoke(app, command)
    assert result.exit_code == 75
    assert result.stderr.startswith("rl-onoff: another process writes to")


def test_a_full_disk_is_74(service: Answers, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def full(file: int, written: bytes, at: int) -> int:
        if at > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, written, at)

    monkeypatch.setattr(os, "pwrite", full)
    command = ["sample", "-d", str(data), "-m", "base", "-o", str(tmp_path / "r"), "--concurrency", "1"]
    result = runner.invoke(app, command)
    assert result.exit_code == 74
    assert "No space left on device" in result.stderr
    assert [row["id"] for row in read(tmp_path / "r")] == ["r0"]
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sample", "-m", "base"], "--data"),
        (["sample", "-d", "{data}", "-m", "base", "--resume"], "it needs --output"),
        (["sample", "-d", "{data}", "-m", "base", "--json"], "it needs --output"),
        (["sample", "-d", "{data}", "-m", "base", "--metric", "blue"], "Did you mean 'bleu'?"),
        (["sample", "-d", "{data}", "-m", "bas"], "there is no model 'bas'; served are base, rl"),
        (["sample", "-d", "nowhere.jsonl", "-m", "base"], "there is no file"),
        (["sample", "-d", "{data}", "-m", "base", "--prompt-column", "promt"], "Did you mean 'prompt'?"),
        (["sample", "-d", "{data}", "-m", "base", "-o", "out.jsonl"], "written to a folder"),
        (["distributions", "-d", "{data}", "-m", "base"], "need a folder"),
        (["distributions", "-d", "{data}", "-m", "base", "--format", "jsonl"], "Give --top-k"),
        (["switch", "-d", "{data}", "--policy", "entropi"], "Did you mean 'entropy'?"),
        (["switch", "-d", "{data}", "--metric", "perplexity"], "perplexity does not apply here"),
        (["sample", "-d", "{data}", "-m", "base", "--metric", "exact_match:"], "parameter after the colon is empty"),
        (["sample", "-d", "{data}", "-m", "base", "--system", "S"], "(--system) needs a chat (--chat)"),
        (["switch", "Q", "-d", "{data}"], "give a prompt, or a data set"),
    ],
)
def test_wrong_usage_is_2(service: Answers, data: Path, arguments: list[str], said: str) -> None:
    result = runner.invoke(app, [argument.format(data=data) for argument in arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", "").split())
    assert not service.bodies


@pytest.mark.parametrize("output", ["{data}/r", "/dev/null/r", "/proc/r", "{folder}/" + 300 * "n"])
def test_a_folder_that_cannot_be_written_is_74(service: Answers, data: Path, output: str) -> None:
    output = output.format(data=data, folder=data.parent)
    result = runner.invoke(app, ["sample", "-d", str(data), "-m", "base", "-o", output])
    assert result.exit_code == 74
    assert result.stderr.startswith(f"rl-onoff: the output cannot be written: {output}: ")
    assert result.stderr.count("\n") == 1
    assert not service.bodies


def test_bad_rows_are_the_same_when_a_finished_run_is_resumed(service: Answers, data: Path, tmp_path: Path) -> None:
    service.refused = {"q3"}
    with data.open("a") as file:
        file.write('{"id": "r9"}\n')
    command = ["sample", "-d", str(data), "-m", "base", "--n", "2", "-o", str(tmp_path / "r"), "--skip-bad"]
    told = []
    for arguments in (command, [*command, "--resume"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.stderr
        assert "2 rows could not be used" in result.stderr
        told.append(json.loads((tmp_path / "r" / "summary.json").read_text()))
    assert told[0] == told[1]
    assert told[0]["bad_rows"] == 2
    assert told[0]["first_bad_rows"] == ["d.jsonl:6: column 'prompt' for the prompt is missing", "r3: too long"]


def test_metrics_that_need_no_reference_need_no_column(service: Answers, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "q1"}\n')
    assert runner.invoke(app, ["sample", "-d", str(path), "-m", "base", "--metric", "length"]).exit_code == 0
    result = runner.invoke(app, ["sample", "-d", str(path), "-m", "base", "--metric", "exact_match"])
    assert result.exit_code == 2
    assert "no column looks like a reference" in result.stderr
