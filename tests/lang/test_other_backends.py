"""The HTTP backend against a server made of rules, and recordings of any backend."""

import json

import httpx
import pytest
from fake import FakeBackend
from tiny_chat import tiny_tokenizer

from infercore.errors import ProgramError
from infercore.lang import assistant, function, gen, select, user
from infercore.lang.backends import HttpBackend, RecordingBackend, ReplayingBackend


class Server:
    """Answers completions; scores echoed prompts by characters: " yes" is likelier than " no"."""

    def __init__(self):
        self.requests = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.requests.append((request.url.path, body))
        if body.get("max_tokens") == 13:
            return httpx.Response(400, text="unlucky")
        if request.url.path == "/v1/chat/completions":
            text = f"{len(body['messages'])} messages"
            return httpx.Response(200, json={"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
        if body.get("echo"):
            prompt = body["prompt"]
            values = [None] + [-0.1 if c in " yes" else -2.0 for c in prompt[1:]] + [-9.0]
            logprobs = {
                "tokens": [*prompt, "x"],
                "token_logprobs": values,
                "text_offset": list(range(len(prompt) + 1)),
            }
            return httpx.Response(200, json={"choices": [{"text": prompt + "x", "logprobs": logprobs}]})
        return httpx.Response(200, json={"choices": [{"text": f"<{body['prompt'][-6:]}>", "finish_reason": "stop"}]})


@pytest.fixture
def server():
    return Server()


def make(server, **options):
    return HttpBackend("http://localhost/v1/", model="m", transport=httpx.MockTransport(server), **options)


def test_text_goes_to_completions_with_its_options(server):
    @function
    def program(s, topic):
        s += f"About {topic}: "
        s += gen("x", max_tokens=7, temperature=0.5, stop=".")
        s += select("ok", [" yes", " no"])
        return s["ok"]

    backend = make(server)
    runs = program.run_batch(backend, [{"topic": t} for t in ("sea", "air")], seed=3)
    assert [run.value for run in runs] == [" yes", " yes"]
    assert runs[0]["x"] == "< sea: >"
    path, body = server.requests[0]
    assert path == "/v1/completions"
    assert body["max_tokens"] == 7
    assert body["stop"] == ["."]
    assert isinstance(body["seed"], int)
    backend.close()


def test_chats_go_as_messages_or_with_a_tokenizer_as_text(server):
    @function
    def chat(s):
        s += user("Hi")
        s += assistant(gen("a", max_tokens=5))
        s += user("And?")
        s += assistant("So ", gen("b", max_tokens=5))

    with pytest.raises(ProgramError, match="cannot be continued by messages"):
        chat.run(make(server))
    run = chat.run(make(server, dialect="vllm"))
    assert run["b"] == "4 messages"
    assert server.requests[-1][1]["continue_final_message"] is True
    run = chat.run(make(server, tokenizer=tiny_tokenizer()))
    assert server.requests[-1][0] == "/v1/completions"
    assert server.requests[-1][1]["prompt"].endswith("<|turn|>assistant\nSo ")


def test_constraints_in_every_dialect(server):
    @function
    def constrained(s, kind):
        s += "x"
        s += {
            "schema": gen("v", schema={"type": "integer"}, max_tokens=5),
            "regex": gen("v", regex="[a-z]+", max_tokens=5),
            "choices": gen("v", choices=["a.b", "c"], max_tokens=5),
            "top_k": gen("v", top_k=5, max_tokens=5),
        }[kind]

    for dialect, kind, field, value in (
        ("vllm", "regex", "structured_outputs", {"regex": "[a-z]+"}),
        ("vllm", "choices", "structured_outputs", {"choice": ["a.b", "c"]}),
        ("sglang", "regex", "regex", "[a-z]+"),
        ("sglang", "choices", "regex", "(a\\.b|c)"),
        ("sglang", "top_k", "top_k", 5),
    ):
        constrained.run(make(server, dialect=dialect), kind=kind)
        assert server.requests[-1][1][field] == value
    for kind in ("regex", "choices", "top_k"):
        with pytest.raises(ProgramError, match="dialect="):
            constrained.run(make(server), kind=kind)
    with pytest.raises(ProgramError, match="is no json"):  # the rules of this server know no schemas
        constrained.run(make(server), kind="schema")
    assert server.requests[-1][1]["response_format"]["json_schema"]["schema"] == {"type": "integer"}


def test_what_the_server_refuses_ends_the_program_at_its_line(server):
    @function
    def unlucky(s):
        s += "x"
        s += gen("v", max_tokens=13)

    for mode in ("traced", "eager"):
        with pytest.raises(ProgramError, match=r"test_other_backends\.py:\d+: ValueError: /completions answered 400"):
            unlucky.run(make(server), mode=mode)


def test_select_in_a_chat_needs_the_template(server):
    @function
    def rated(s):
        s += user("Good?")
        s += assistant(select("v", ["yes", "no"]))

    with pytest.raises(ProgramError, match="pass HttpBackend"):
        rated.run(make(server))
    assert rated.run(make(server, tokenizer=tiny_tokenizer()))["v"] == "yes"


def test_a_recording_gives_the_same_run_without_the_backend(tmp_path):
    @function
    def program(s, topic):
        s += user(topic)
        s += gen("x", temperature=0.5)
        s += select("y", ["a", "b"])

    path = tmp_path / "run.json"
    batch = [{"topic": "sea"}, {"topic": "air"}]
    recorded = program.run_batch(RecordingBackend(FakeBackend(), path), batch, seed=1)
    for mode in ("traced", "eager"):
        assert program.run_batch(ReplayingBackend(path), batch, seed=1, mode=mode) == recorded
    with pytest.raises(ProgramError, match="record it again"):
        program.run(ReplayingBackend(path), topic="sun", seed=1)
    program.run(RecordingBackend(FakeBackend(), path), topic="sun", seed=1)
    assert program.run(ReplayingBackend(path), topic="sun", seed=1)
    assert program.run_batch(ReplayingBackend(path), batch, seed=1) == recorded
