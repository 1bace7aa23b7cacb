"""Adapters that come, change and go while the server runs."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from peftjob import oci

QUESTION = [{"role": "user", "content": "why"}]


@pytest.fixture
def http(server: Any) -> Iterator[httpx.Client]:
    """A client of the shared server, which is left as it was."""
    with httpx.Client(base_url=server.url, timeout=30) as http:
        before = names(http)
        yield http
        for name in names(http):
            if name not in before:
                http.delete(f"/v1/adapters/{name}")


def names(http: httpx.Client) -> list[str]:
    return [adapter["id"] for adapter in http.get("/v1/adapters").json()["data"]]


def load(http: httpx.Client, name: str, source: str, **more: Any) -> httpx.Response:
    return http.post("/v1/adapters", json={"name": name, "source": source, **more})


def ask(client: OpenAI, model: str, **more: Any) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=24,
        extra_body=more,
    )
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize(
    ("source", "words"), [("team", "is no reference of an image"), ("./team", "is no source")]
)
def test_a_source_without_a_scheme_is_an_images_reference(
    source: str, words: str, http: httpx.Client
) -> None:
    answer = load(http, "new", source)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_loaded_adapter_answers_as_peft_does(
    world: Any, client: OpenAI, http: httpx.Client
) -> None:
    answer = load(http, "new", world.adapters["small"].as_uri())

    assert answer.status_code == 201
    assert answer.json()["rank"] == 4
    assert ask(client, "new") == world.answer("why", "small", 24)
    assert client.models.retrieve("new").id == "new"
    assert http.get("/v2/models/new/ready").status_code == 200


def test_an_adapter_comes_from_an_image_whose_digest_is_told(
    world: Any, http: httpx.Client, tmp_path: Path
) -> None:
    layout = oci.Reference.parse(f"oci-layout://{tmp_path}/registry:v1")
    pushed = oci.push(world.adapters["small"], layout, annotations={})

    card = load(http, "new", str(layout)).json()

    assert card["digest"] == pushed.digest
    assert card["base_model"] == str(world.base)
    assert card["source"].endswith(f"@{pushed.digest}")


def test_loading_again_takes_the_place_of_the_old_version(
    world: Any, client: OpenAI, http: httpx.Client
) -> None:
    load(http, "new", world.adapters["small"].as_uri())

    answer = load(http, "new", world.adapters["large"].as_uri())

    assert answer.status_code == 200
    assert ask(client, "new") == world.answer("why", "large", 24)
    assert names(http).count("new") == 1


def test_an_unloaded_adapter_is_404_everywhere(
    world: Any, client: OpenAI, http: httpx.Client
) -> None:
    load(http, "new", world.adapters["small"].as_uri())

    gone = http.delete("/v1/adapters/new")

    assert gone.json() == {"id": "new", "object": "adapter", "deleted": True}
    assert http.get("/v2/models/new/ready").status_code == 404
    assert http.delete("/v1/adapters/new").status_code == 404
    with pytest.raises(openai.NotFoundError):
        ask(client, "new")


def test_a_stream_ends_with_the_version_that_it_began_with(
    world: Any, client: OpenAI, http: httpx.Client
) -> None:
    load(http, "new", world.adapters["large"].as_uri())
    wanted = {"model": "new", "prompt": "a pod", "temperature": 0, "max_tokens": 150}
    expected = client.completions.create(**wanted).choices[0].text
    stream = client.completions.create(**wanted, stream=True)
    text = next(stream).choices[0].text

    http.delete("/v1/adapters/new")
    text += "".join(chunk.choices[0].text for chunk in stream)

    assert text == expected


def test_an_adapter_is_talked_to_in_its_own_chat_template(
    world: Any, client: OpenAI, http: httpx.Client, tmp_path: Path
) -> None:
    own = "{% for m in messages %}<|system|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    folder = shutil.copytree(world.adapters["small"], tmp_path / "own")
    (folder / "chat_template.jinja").write_text(own)
    load(http, "new", folder.as_uri())
    text = world.tokenizer.apply_chat_template(QUESTION, chat_template=own, tokenize=False)
    ids = world.tokenizer(text, add_special_tokens=False)["input_ids"]

    answers = {ask(client, "new"), ask(client, "tiny", adapters=[{"name": "new"}])}

    assert answers == {world.tokenizer.decode(world.generate(ids, "small", 24))}
    assert world.answer("why", "small", 24) not in answers


def test_a_strength_is_the_adapters_until_a_request_names_another(
    world: Any, client: OpenAI, http: httpx.Client
) -> None:
    load(http, "off", world.adapters["small"].as_uri(), strength=0)

    assert ask(client, "off") == world.answer("why", None, 24)
    assert ask(client, "off", adapters=[{"name": "off", "strength": 1}]) == (
        world.answer("why", "small", 24)
    )


def test_adapters_of_a_request_go_before_its_model(world: Any, client: OpenAI) -> None:
    assert ask(client, "large", adapters=[]) == world.answer("why", None, 24)
    assert ask(client, "tiny", adapters=[{"name": "small"}]) == world.answer("why", "small", 24)
    both = [{"name": "small", "strength": 1}, {"name": "large", "strength": 0}]
    assert ask(client, "large", adapters=both) == world.answer("why", "small", 24)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ([{"name": "small"}, {"name": "small"}], "twice"),
        ([{"name": "tiny"}], "base model and no adapter"),
        ([{"name": "small", "strength": 11}], "adapters"),
        ([{"name": "small", "strengh": 1}], "not supported"),
    ],
)
def test_a_blend_that_cannot_be_is_400(client: OpenAI, adapters: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, "tiny", adapters=adapters)


def test_an_unknown_adapter_in_a_blend_is_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny, small, large"):
        ask(client, "tiny", adapters=[{"name": "other"}])


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "new", "source": "file:///nowhere/at/all"}, 422, "does not exist"),
        ({"name": "new", "source": "oci-layout:///nowhere:v1"}, 404, "nowhere"),
        ({"name": "new", "source": "/plain/path"}, 400, "no source"),
        ({"name": "../up", "source": "file:///x"}, 400, "no model name"),
        ({"name": "tiny", "source": "file:///x"}, 409, "base model's name"),
        ({"name": "new"}, 400, "source"),
        ({"name": "new", "source": "file:///x", "strength": 99}, 400, "strength"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_one_line(
    http: httpx.Client, body: dict[str, Any], status: int, words: str
) -> None:
    answer = http.post("/v1/adapters", json=body)

    error = answer.json()["error"]
    assert (answer.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert words in error["message"]
    assert "\n" not in error["message"]


def spoil(adapter: Path, how: str, world: Any) -> None:
    """Make an adapter of rank 4 one that can't be served."""
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    fields = json.loads(config.read_text())
    match how:
        case "shapes of another model":
            shutil.copy(world.adapters["large"] / weights.name, weights)
        case "rank":
            config.write_text(json.dumps({**fields, "r": 8}))
        case "no weights":
            weights.unlink()
        case "half a file":
            weights.write_bytes(weights.read_bytes()[:200])
        case "dora":
            config.write_text(json.dumps({**fields, "use_dora": True}))


@pytest.mark.parametrize(
    "how", ["shapes of another model", "rank", "no weights", "half a file", "dora"]
)
def test_a_refused_update_leaves_the_old_version_and_the_others(
    world: Any,
    client: OpenAI,
    http: httpx.Client,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    how: str,
) -> None:
    load(http, "new", world.adapters["small"].as_uri())
    broken = make_adapter(tmp_path / "broken", r=4, target_modules=["q_proj"])
    spoil(broken, how, world)

    answer = load(http, "new", broken.as_uri())

    assert answer.status_code == 422, answer.text
    assert ask(client, "new") == world.answer("why", "small", 24)
    assert ask(client, "large") == world.answer("why", "large", 24)


def test_the_base_model_stays(http: httpx.Client) -> None:
    assert http.delete("/v1/adapters/tiny").status_code == 409


def test_kserves_repository_loads_and_unloads_what_openai_answers(
    world: Any, client: OpenAI, http: httpx.Client
) -> None:
    parameters = {"source": world.adapters["small"].as_uri()}

    first = http.post("/v2/repository/models/kserve/load", json={"parameters": parameters})
    answer = ask(client, "kserve")
    gone = http.post("/v2/repository/models/kserve/unload")
    ready = http.get("/v2/models/kserve/ready").status_code
    again = http.post("/v2/repository/models/kserve/load")

    assert [first.json(), gone.json(), again.json()] == [
        {"name": "kserve", "load": True},
        {"name": "kserve", "unload": True},
        {"name": "kserve", "load": True},
    ]
    assert ready == 404
    assert answer == ask(client, "kserve") == world.answer("why", "small", 24)


def test_kserves_repository_asks_where_an_unknown_name_is(http: httpx.Client) -> None:
    answer = http.post("/v2/repository/models/nobody/load")

    assert answer.status_code == 404
    assert "parameters" in answer.json()["error"]["message"]


def test_kserves_index_is_what_there_is(world: Any, http: httpx.Client) -> None:
    load(http, "new", world.adapters["small"].as_uri())

    models = http.post("/v2/repository/index").json()

    assert [model["name"] for model in models] == ["tiny", "small", "large", "new"]
    assert {model["state"] for model in models} == {"READY"}
    assert http.get("/v2/models").json()["models"] == ["tiny", "small", "large", "new"]


def test_the_model_card_comes_with_the_adapter(
    world: Any, http: httpx.Client, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "carded", r=2, target_modules=["q_proj"])
    (folder / "README.md").write_text("# Support\n")

    load(http, "new", folder.as_uri())

    assert http.get("/v1/adapters/new").json()["card"] == "# Support\n"
